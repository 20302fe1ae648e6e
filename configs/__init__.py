"""Configs of the experiments: `base` has every field, the others override."""
