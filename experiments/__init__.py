"""Entry points: flags, one call."""

import os

# Before clu imports TensorFlow, which would log its optimisations.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
