"""Experiments as configs: `base` is complete, the others override it."""
