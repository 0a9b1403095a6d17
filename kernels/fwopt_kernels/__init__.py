"""Triton kernels for LLM serving, one operator a file. Stands alone: imports nothing of `fwopt`."""
