"""Tests of dispatch: each call goes to a backend that serves it, and all other calls go to the reference."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ossia
from ossia.kernels import dispatch
from ossia.kernels.cpu import attention, gate, lowrank, mxfp4, paths, product
from ossia.kernels.cpu.library import native
from ossia.kernels.reference import Packed
from ossia.kernels.reference import gate as reference_gate
from ossia.kernels.reference import lowrank as reference_lowrank
from ossia.kernels.reference import mxfp4 as reference_mxfp4
from ossia.kernels.reference import product as reference_product

CPU, META, BF16 = torch.device("cpu"), torch.device("meta"), torch.bfloat16
SOURCE = Path(ossia.__file__).parent


@pytest.fixture(params=["as it is", "without the library"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether the C library is loaded: true if it is built, and false with OSSIA_NATIVE=0."""
    native.cache_clear()
    if request.param == "without the library":
        monkeypatch.setenv("OSSIA_NATIVE", "0")
    elif native().library is None:
        pytest.skip(native().reason)
    yield native().library is not None
    monkeypatch.undo()
    native.cache_clear()


def drawn(*size: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(dtype)


def packed(outputs: int, inputs: int) -> Packed:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
    return Packed(blocks, torch.randint(118, 125, blocks.shape[:2], generator=generator, dtype=torch.uint8))


def test_the_library_serves_what_it_was_made_for(library: bool) -> None:
    has_product = native().has_product
    assert mxfp4.serves(CPU, BF16) == mxfp4.serves(CPU, torch.float32) == library
    assert not mxfp4.serves(CPU, torch.float64) and not mxfp4.serves(META, BF16)
    assert gate.serves(drawn(2, 8)) == library
    assert not gate.serves(drawn(2, 8, dtype=torch.float32)) and not gate.serves(drawn(2, 8).to(META))
    assert product.serves(drawn(20, 32), True) == product.serves(drawn(20, 32), False) == has_product
    few, many = drawn(8, 32, dtype=torch.float32), drawn(9, 32, dtype=torch.float32)
    assert product.serves(few, True) == library
    assert not product.serves(few, False) and not product.serves(many, True) and not product.serves(few.to(META), True)
    assert lowrank.serves_narrow(drawn(3, 64), drawn(64, 4)) == has_product
    assert lowrank.serves_outer(drawn(3, 4), drawn(3, 64)) == has_product
    assert paths.serves(CPU, BF16, 64, 8) == (native().paths_rows > 0)
    assert attention.serves(CPU) and not attention.serves(META)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, BF16])
def test_every_dtype_is_dequantised_and_multiplied(library: bool, dtype: torch.dtype) -> None:
    matrix = packed(64, 96)
    truth = reference_mxfp4.dequantise(*matrix, dtype)
    assert torch.equal(dispatch.dequantise(*matrix, dtype), truth)
    assert torch.equal(dispatch.dequantise_to_scratch(*matrix, dtype), truth)
    for transposed, inputs in ((True, 96), (False, 64)):
        x = drawn(20, inputs, dtype=dtype)
        mine, other = (part.product(x, matrix, transposed) for part in (dispatch, reference_product))
        assert mine is not None and other is not None and mine.dtype == dtype
        if product.serves(x, transposed):
            torch.testing.assert_close(mine, other)
        else:
            assert torch.equal(mine, other)


def test_sizes_that_do_not_fit_and_other_dtypes_go_to_torch() -> None:
    x, w, a = drawn(5, 48), drawn(48, 3), drawn(5, 3)
    assert torch.equal(dispatch.narrow(x, w, False, 2.0), reference_lowrank.narrow(x, w, False, 2.0))
    assert torch.equal(dispatch.outer(a, x, True), reference_lowrank.outer(a, x, True))
    wide = dispatch.outer(a.double(), x.double(), False)
    assert wide.dtype == torch.float64 and wide.shape == (3, 48)
    h = drawn(3, 16, dtype=torch.float64)
    assert torch.equal(dispatch.gate(h, 1.7, 7.0), reference_gate.gate(h, 1.7, 7.0))


def test_the_form_of_attention(library: bool) -> None:
    assert dispatch.attention_form(CPU, torch.float32, 64) == "dense"
    assert dispatch.attention_form(META, BF16, 64) == "dense"
    assert dispatch.attention_form(CPU, BF16, 64, 8) == ("paths" if native().paths_rows else "dense")
    assert dispatch.attention_form(CPU, BF16, 32, 8) == "dense"


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_devices_are_told_apart_in_the_kernels_and_nowhere_above() -> None:
    """Other modules import `dispatch`, the reference and the types. Only the doctor looks for the library."""
    for file in SOURCE.rglob("*.py"):
        place = file.relative_to(SOURCE)
        names = set(imported(file))
        if place.parts[0] == "kernels":
            allowed = ("ossia.errors", "ossia.kernels")
            assert all(name.startswith(allowed) for name in names if name.startswith("ossia")), place
            if place.parts[1] in ("reference", "cpu", "cuda"):  # a backend imports itself and the reference
                own = ("ossia.errors", "ossia.kernels.reference", f"ossia.kernels.{place.parts[1]}")
                assert all(name.startswith(own) for name in names if name.startswith("ossia")), place
        elif place.as_posix() != "plan/doctor.py":
            found = [name for name in names if name.startswith(("ossia.kernels.cpu", "ossia.kernels.cuda"))]
            assert not found, place


def test_the_format_is_known_without_torch() -> None:
    code = "import sys, ossia.kernels.reference, ossia.kernels.cpu.library; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
