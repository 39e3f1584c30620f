"""Compile the C in `native/` to a shared library beside it: at installation, or by `python -m ossia.kernels.cpu.build`.

The library is optional. Without a compiler, or on a system where compiling fails, plain torch does the same work more
slowly. The library does not depend on Python or torch, so one build works with every version of both.

OpenMP is not linked. Its functions come from the OpenMP that torch has loaded, because two pools of threads on the
same cores slow each other down.

This file imports only the standard library, because the build hook runs it before Ossia is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NATIVE = Path(__file__).parent / "native"
SOURCES = ("mxfp4.c", "product.c", "product_few.c", "gate.c", "lowrank.c", "paths.c")
LIBRARY = NATIVE / "libossia.so"
FLAGS = ("-O3", "-std=c11", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-D_GNU_SOURCE")


def compiler() -> str | None:
    """Return the path of the C compiler ($CC, else cc, gcc or clang), or None."""
    named = os.environ.get("CC")
    return next((found for name in (named, "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)


def compile_library() -> str | None:
    """Compile the library. Return None on success, else a sentence with the reason for the failure. Never raises."""
    if sys.platform not in ("linux", "darwin"):
        return f"no native kernels on {sys.platform}: plain torch is used"
    cc = compiler()
    if cc is None:
        return "no C compiler was found: plain torch is used for four-bit weights, which is slower"
    try:
        with tempfile.TemporaryDirectory(dir=NATIVE) as scratch:
            library = Path(scratch) / LIBRARY.name
            parallel = ("-fopenmp",) if sys.platform == "linux" else ()
            objects = [str(Path(scratch) / f"{name}.o") for name in SOURCES]
            for source, compiled in zip(SOURCES, objects, strict=True):
                _run(cc, *FLAGS, *parallel, "-c", str(NATIVE / source), "-o", compiled)
            _run(cc, "-shared", *objects, "-lm", "-o", str(library))
            library.replace(LIBRARY)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        return f"the native kernels could not be compiled ({str(told).strip()[-300:]}): plain torch is used"
    return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


if __name__ == "__main__":
    problem = compile_library()
    print(problem or f"built {LIBRARY}")
    sys.exit(1 if problem else 0)
