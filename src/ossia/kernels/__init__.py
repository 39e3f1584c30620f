"""The few hot loops. Devices are told apart in `dispatch` and nowhere above. Nothing is imported here.

dispatch      what the rest of Ossia calls: each function hands its work to a backend that serves
reference/    plain torch on any device: the truth for all backends, the MXFP4 format and the shared types
cpu/          a small library in C, and torch's fused kernels for CPUs
cuda/         torch's flash kernels for NVIDIA GPUs

A backend says what it serves and computes that; it never falls back by itself. A new device is a new folder here, and
lines in `dispatch`.
"""
