"""Entry points: flags, one call."""

import importlib.util
import os
import sys

# Before clu imports TensorFlow, which would log its optimisations.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

if importlib.util.find_spec("configs.base") is None:
  print(
    f"error: {os.getcwd()}: its package configs/ hides that of cfgd; remove "
    "its __init__.py or start in another folder",
    file=sys.stderr,
  )
  sys.exit(2)
