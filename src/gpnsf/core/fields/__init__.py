"""Gaussian-process fields over space: kernels, one contract, two ways to approximate."""
