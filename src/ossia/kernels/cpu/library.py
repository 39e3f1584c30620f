"""The loaded C library of `native/`, or the reason why it is not loaded.

Its functions take pointers and numbers, and no objects of Python or torch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

from ossia.kernels.cpu.build import LIBRARY

LEVELS = ("portable C", "AVX2", "AVX-512")
BEST_LEVEL = len(LEVELS) - 1


class Native(NamedTuple):
    """The loaded library and the processor's instructions that it uses, or the reason why it is not loaded."""

    library: ctypes.CDLL | None
    reason: str
    """The instructions in words for users; without a library, the reason."""
    has_product: bool = False
    """Whether this processor supports the fused products (AVX-512 BF16)."""
    paths_rows: int = 0
    """Largest number of rows that attention along paths takes at a time; 0 if this processor does not support it."""


class ProductArguments(ctypes.Structure):
    """The arguments of `ossia_product_bf16`; see native/product.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "blocks", "scales", "more_x", "more_w", "bias")),
        *((name, ctypes.c_void_p) for name in ("out", "into", "places", "factors")),
        *((name, ctypes.c_int64) for name in ("rows", "outputs", "inputs", "rank", "transposed")),
    ]


class PathsArguments(ctypes.Structure):
    """The arguments of `ossia_paths_forward` and `ossia_paths_backward`; see native/paths.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "grad", "out_given", "sinks", "out", "lse")),
        *((name, ctypes.c_void_p) for name in ("dq", "dk", "dv", "ranges", "paths", "chunks")),
        *((name, ctypes.c_int64) for name in ("chunk_count", "tokens", "heads", "key_heads", "parts", "window")),
        *((f"{name}_{axis}", ctypes.c_int64) for name in ("q", "k", "v", "g", "o", "dq") for axis in ("head", "token")),
        ("scale", ctypes.c_float),
    ]


@functools.lru_cache(maxsize=1)
def native() -> Native:
    """Return the C library, loaded at the first call. With `OSSIA_NATIVE=0` it is not loaded."""
    if os.environ.get("OSSIA_NATIVE") == "0":
        return Native(None, "switched off by OSSIA_NATIVE=0")
    if not LIBRARY.is_file():
        return Native(None, "not built; python -m ossia.kernels.cpu.build  builds it where there is a C compiler")
    try:
        _share_openmp()
        library = ctypes.CDLL(str(LIBRARY))
        _declare(library)
        level, has_product = library.ossia_mxfp4_level(), bool(library.ossia_product_supported())
        rows = library.ossia_paths_rows()
    except (OSError, AttributeError) as error:
        return Native(None, f"cannot be loaded ({error}); python -m ossia.kernels.cpu.build  builds it again")
    return Native(library, LEVELS[level] + (" with BF16 products" if has_product else ""), has_product, rows)


def loaded() -> ctypes.CDLL:
    """Return the C library, for callers that have checked with `native` that it is loaded."""
    library = native().library
    assert library is not None, native().reason
    return library


def _declare(library: ctypes.CDLL) -> None:
    """Declare the arguments of each function. Raises AttributeError if the library was built from another version."""
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    signatures: dict[str, tuple[type, ...]] = {
        "ossia_mxfp4_bf16": (pointer, pointer, pointer, number, ctypes.c_int),
        "ossia_mxfp4_f32": (pointer, pointer, pointer, number, ctypes.c_int),
        "ossia_product_few_f32": (pointer, number, pointer, pointer, number, number, pointer, ctypes.c_int),
        "ossia_gate_bf16": (pointer, pointer, number, number, real, real, ctypes.c_int),
        "ossia_gate_backward_bf16": (*(pointer,) * 5, number, number, real, real, ctypes.c_int),
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    for name, given in (("product", ProductArguments), ("paths", PathsArguments)):
        size = getattr(library, f"ossia_{name}_size")
        size.restype = number
        if size() != ctypes.sizeof(given):
            raise AttributeError(f"its {name} takes other arguments")
    library.ossia_product_bf16.argtypes = (ctypes.POINTER(ProductArguments),)
    library.ossia_narrow_bf16.argtypes = (*(pointer,) * 3, *(number,) * 4, real)
    library.ossia_outer_bf16.argtypes = (*(pointer,) * 3, *(number,) * 4)
    library.ossia_paths_rows.restype = number
    for name in ("ossia_paths_forward", "ossia_paths_backward"):
        getattr(library, name).argtypes = (ctypes.POINTER(PathsArguments),)


def _share_openmp() -> None:
    """Make the OpenMP that torch has loaded visible to the library, so that both use one pool of threads."""
    if sys.platform != "linux":
        return
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    loaded = {line.split()[-1] for line in maps if "/libgomp" in line or "/libiomp5" in line}
    for path in sorted(loaded) or ["libgomp.so.1"]:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
