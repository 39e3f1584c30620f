"""Kernels for NVIDIA GPUs.

    flash    attention of rows of different lengths by torch's flash operators

All other kernels are plain torch on a GPU.
"""
