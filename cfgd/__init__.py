"""Classifier-free diffusion guidance (arXiv:2207.12598) in JAX and Flax."""
