"""Tests of the native dequantiser against the reference, bit by bit, and of the reasons if it is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ossia.kernels import dispatch
from ossia.kernels.cpu import build, library, mxfp4
from ossia.kernels.reference.mxfp4 import dequantise

WORDS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if library.native().library is None:
        pytest.skip(f"native kernels: {library.native().reason}")


def same_bits(mine: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether the bits are equal. All bit patterns of NaN count as equal."""
    word = WORDS[mine.dtype]
    nan = mine.isnan() & other.isnan()
    return mine.dtype == other.dtype and bool(((mine.view(word) == other.view(word)) | nan).all())


@pytest.mark.parametrize("dtype", WORDS)
def test_every_byte_under_every_scale(level: int, dtype: torch.dtype) -> None:
    """All 256 x 256 pairs. A byte holds two codes, so every code occurs in both halves of every place."""
    byte, place = torch.arange(256, dtype=torch.uint8), torch.arange(16, dtype=torch.uint8)
    blocks = (byte[:, None] + place).repeat(256, 1).reshape(256, 256, 1, 16)
    scales = torch.arange(256, dtype=torch.uint8)[:, None, None].expand(256, 256, 1)
    assert same_bits(mxfp4.dequantise(blocks, scales, dtype, level=level), dequantise(blocks, scales, dtype))


@pytest.mark.parametrize("dtype", WORDS)
def test_random_matrices_in_one_thread_and_in_many(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 128, 90, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 140, (3, 128, 90), dtype=torch.uint8, generator=generator)
    truth = dequantise(blocks, scales, dtype)
    assert same_bits(mxfp4.dequantise(blocks, scales, dtype), truth)
    assert same_bits(mxfp4.dequantise(blocks[1:, ::2], scales[1:, ::2], dtype), truth[1:, ::2].contiguous())
    assert same_bits(mxfp4.dequantise_to_scratch(blocks, scales, dtype), truth)
    smaller = mxfp4.dequantise_to_scratch(blocks[0, :8], scales[0, :8], dtype)
    assert same_bits(smaller, truth[0, :8]) and smaller.shape == (8, 2880)


def test_one_pool_of_threads() -> None:
    """The library must use torch's OpenMP, because a second OpenMP would spin on the same cores."""
    code = (
        "import torch; from ossia.kernels.cpu import library, mxfp4; assert library.native().library;"
        "b = torch.zeros(1, 9000, 16, dtype=torch.uint8); mxfp4.dequantise(b, b[..., 0]);"
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'iomp' in line}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_without_a_library_or_a_compiler_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocks, scales = torch.zeros(2, 1, 16, dtype=torch.uint8) + 0x21, torch.full((2, 1), 127, dtype=torch.uint8)
    for change in ("off", "missing", "broken"):
        monkeypatch.setenv("OSSIA_NATIVE", "0" if change == "off" else "1")
        file = tmp_path / "libossia.so"
        if change == "broken":
            file.write_bytes(b"no library")
        monkeypatch.setattr(library, "LIBRARY", file)
        library.native.cache_clear()
        assert library.native().library is None and library.native().reason
        assert torch.equal(dispatch.dequantise_to_scratch(blocks, scales, torch.bfloat16), dequantise(blocks, scales))
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert "no C compiler" in (build.compile_library() or "")
    monkeypatch.setattr(build, "compiler", lambda: sys.executable)
    assert "could not be compiled" in (build.compile_library() or "")
    library.native.cache_clear()
