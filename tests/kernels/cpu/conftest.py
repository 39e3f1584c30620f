"""The instruction sets that a test of the C library runs on."""

from __future__ import annotations

import pytest

from ossia.kernels.cpu import library


@pytest.fixture(params=range(len(library.LEVELS)), ids=library.LEVELS)
def level(request: pytest.FixtureRequest) -> int:
    """Each instruction set of `library.LEVELS`. It is skipped if the processor lacks it, as C would use a lower one."""
    if library.native().library is None:
        pytest.skip(f"native kernels: {library.native().reason}")
    if request.param > library.loaded().ossia_mxfp4_level():
        pytest.skip(f"this processor has no {library.LEVELS[request.param]}")
    return int(request.param)
