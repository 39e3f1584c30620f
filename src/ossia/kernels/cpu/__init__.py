"""Kernels for CPUs.

    build        compiles the C in native/ to a shared library
    library      the loaded library, or the reason why there is none
    mxfp4        dequantising (native/mxfp4.c)
    product      products with a matrix in MXFP4, fused (native/product.c, native/product_few.c)
    gate         SwiGLU and its gradient (native/gate.c)
    lowrank      the thin products of LoRA (native/lowrank.c)
    paths        attention of a whole forest along its paths (native/paths.c)
    attention    dense attention by torch's own flash kernel

Each function has a counterpart in `ossia.kernels.reference`, so Ossia works without the C library.
"""
