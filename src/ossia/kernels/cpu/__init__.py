"""The hot loops on CPUs: C with AVX-512 and AVX2, and torch's own fused kernels."""
