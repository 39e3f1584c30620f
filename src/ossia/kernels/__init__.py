"""Kernels: the few computations that take most of the time, for each kind of device. Nothing is imported here.

    dispatch      the functions that the rest of Ossia calls; each of them chooses a backend
    reference/    plain torch on any device: the reference for all backends, the MXFP4 format and the shared types
    cpu/          a small library in C, and torch's fused kernels for CPUs
    cuda/         torch's flash kernels for NVIDIA GPUs

Only `dispatch` distinguishes devices; no code above it does. A backend states the inputs that it supports, and never
falls back by itself. To add a device, add a folder here and its cases in `dispatch`.
"""
