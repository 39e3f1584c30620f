"""Tests of the facts about the machine, each with its reason."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ossia import hardware
from ossia.errors import UserError
from ossia.hardware import Answer, Gpu

A100 = Gpu("A100", 80_000_000_000, (8, 0))
T4 = Gpu("T4", 16_000_000_000, (7, 5))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: Answer([], "no NVIDIA driver on this machine"))


def with_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: Answer([gpu], "torch.cuda"))


def with_flags(monkeypatch: pytest.MonkeyPatch, machine: str, system: str, *flags: str) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: set(flags))
    monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
    monkeypatch.setattr(hardware.platform, "system", lambda: system)


def test_device(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    assert hardware.device("auto") == Answer("cpu", "no NVIDIA driver on this machine")
    assert hardware.device("cpu") == Answer("cpu", "set in the recipe")
    with pytest.raises(UserError) as error:
        hardware.device("cuda")
    assert error.value.why == "no NVIDIA driver on this machine"
    with_gpu(monkeypatch, A100)
    assert hardware.device("auto") == Answer("cuda", "A100")
    assert hardware.device("cuda").value == "cuda"
    assert hardware.device("cpu").value == "cpu"


def test_dtype_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, A100)
    assert hardware.dtype("auto", "cuda") == Answer("bfloat16", "compute capability 8.0")
    assert hardware.dtype("float32", "cuda") == Answer("float32", "set in the recipe")
    with_gpu(monkeypatch, T4)
    assert hardware.dtype("auto", "cuda") == Answer("float32", "the GPU has no bfloat16 arithmetic")


@pytest.mark.parametrize(
    ("machine", "system", "flags", "answer"),
    [
        ("x86_64", "Linux", ("avx2",), Answer("float32", "the processor has no bfloat16 arithmetic")),
        ("x86_64", "Linux", ("avx512_bf16",), Answer("bfloat16", "the processor has avx512_bf16")),
        ("x86_64", "Linux", ("avx512_bf16", "amx_bf16"), Answer("bfloat16", "the processor has amx_bf16")),
        ("aarch64", "Linux", ("bf16",), Answer("bfloat16", "Arm processor with bf16")),
        ("aarch64", "Linux", ("asimd",), Answer("float32", "the processor has no bfloat16 arithmetic")),
        ("arm64", "Darwin", (), Answer("bfloat16", "Arm processor with bf16")),
    ],
)
def test_dtype_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, machine: str, system: str, flags: tuple[str, ...], answer: Answer[str]
) -> None:
    with_flags(monkeypatch, machine, system, *flags)
    assert hardware.dtype("auto", "cpu") == answer
    assert hardware.dtype("bfloat16", "cpu") == Answer("bfloat16", "set in the recipe")


def cgroup(monkeypatch: pytest.MonkeyPatch, folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    names = ("memory.max", "memory.current", "file")
    monkeypatch.setattr(hardware, "_CGROUPS", ((str(folder), *names),))


def test_memory_is_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = {"memory__current": "700000", "memory__stat": "anon 300000\nfile 400000\n"}
    cgroup(monkeypatch, tmp_path, memory__max="1000000\n", **used)
    # 700,000 bytes are used, but 400,000 of them are file cache, which the kernel frees on demand.
    assert hardware.memory() == Answer(700_000, "left under the container's memory limit")


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "1099511627776000"])
def test_no_limit_or_a_higher_one_leaves_the_machines_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str
) -> None:
    cgroup(monkeypatch, tmp_path, memory__max=limit, memory__current="1", memory__stat="file 0\n")
    answer = hardware.memory()
    assert answer.reason == "available main memory"
    assert 0 < answer.value <= hardware.total_memory()


def test_memory_without_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "_CGROUPS", ((str(tmp_path / "none"), "a", "b", "c"),))
    assert hardware.memory().reason == "available main memory"


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    answer = hardware.disk(tmp_path / "a" / "b")
    assert answer.reason == f"free at {tmp_path}"
    assert answer.value == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_cpu_and_cores_have_reasons() -> None:
    cpu, cores = hardware.cpu(), hardware.cores()
    assert cpu.value
    assert str(cores.value) in cpu.reason
    assert cores.value <= (os.cpu_count() or 1)


def test_gpus_are_not_asked_for_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert hardware.gpus() == Answer([], "no NVIDIA driver on this machine")
