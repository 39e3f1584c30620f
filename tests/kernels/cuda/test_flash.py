"""Tests of the GPU's attention on a CPU, with stand-ins for torch's flash operators (`flash_fakes`).

tests/test_cuda.py tests the real operators on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.adapters import apply as lora
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.kernels.cuda import flash
from ossia.kernels.reference.attention import VarlenRows
from ossia.model import varlen
from ossia.model.attention import attend
from ossia.model.batch import Segments, from_branches, from_rows
from ossia.model.load import load_model
from support.attention_samples import assert_equals_the_definition, forests
from support.flash_fakes import Flash

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    flash._verdict.cache_clear()
    yield
    flash._verdict.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, fake: Flash, dtypes: tuple[torch.dtype, ...] = flash.DTYPES) -> Flash:
    monkeypatch.setattr(flash, "_FORWARD", fake.forward)
    monkeypatch.setattr(flash, "_BACKWARD", fake.backward)
    monkeypatch.setattr(flash, "_DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(flash, "DTYPES", dtypes)
    return fake


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Flash:
    """Install the stand-ins in float64, without the trial at first use."""
    fake = install(monkeypatch, Flash(), (torch.float64, torch.float32))
    monkeypatch.setattr(flash, "_verdict", lambda *_: None)
    return fake


# Against the registered operators


def test_the_real_operators_take_these_calls() -> None:
    """On the meta device, torch binds the calls to the operators' schemas and returns shapes. Log-sum-exp is [H, T]."""
    rows = VarlenRows.of([5, 70], [5, 70], "meta")
    q, k = (torch.empty(75, heads, 64, dtype=torch.bfloat16, device="meta") for heads in (8, 2))
    for causal, window in ((True, None), (True, 128), (False, None)):
        out, lse = flash.varlen_forward(q, k, k, rows, causal=causal, window=window, scale=0.125)
        assert out.shape == q.shape and lse.shape == (8, 75) and lse.dtype == torch.float32
        grads = flash.varlen_backward(q, q, k, k, out, lse, rows, causal=causal, window=window, scale=0.125)
        assert [grad.shape for grad in grads] == [q.shape, k.shape, k.shape]


# Every kind of batch, against the definition


@settings(max_examples=40, deadline=None)
@given(
    forest=forests(),
    window=st.sampled_from([None, 1, 4, 128]),
    seed=st.integers(0, 2**16),
    gathered=st.sampled_from([1, 12, 1 << 17]),
)
def test_a_forest_attends_like_the_dense_definition(
    forest: list[tuple[int | None, int]], window: int | None, seed: int, gathered: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "GATHERED", gathered)
        fake = install(patch, Flash(), (torch.float64,))
        patch.setattr(flash, "_verdict", lambda *_: None)
        # The head size is 8. Outputs and the gradients of q, k, v and sinks agree within 1e-12 in float64.
        assert_equals_the_definition(forest, window, seed)
        branches = sum(parent is not None for parent, _ in forest)
        further = {0: 0, 1: 1}.get(branches, branches if gathered == 1 else 1 if gathered > 12 else None)
        if window is not None or further is not None:
            assert len(fake.calls) == 2 + 2 * (further or 0) * (window is None)


def test_rows_without_ancestors_go_through_uncopied(exact: Flash) -> None:
    q, k = torch.randn(4, 12, 8, dtype=torch.float64), torch.randn(2, 12, 8, dtype=torch.float64)
    segments = Segments(((0, 5), (5, 12)), ((), ()), torch.tensor([*range(5), *range(7)]))
    for window in (None, 4):
        attend(q, k, k, torch.zeros(4, dtype=torch.float64), segments, scale=0.3, window=window)
        call = exact.calls[-1]
        assert call["query"].data_ptr() == q.data_ptr() and call["key"].data_ptr() == k.data_ptr()
        assert call.get("window_size_left") == (None if window is None else 3)
    assert segments.varlen(4) is segments.varlen(4)


def test_a_whole_model_gives_the_same_loss_and_gradients(tmp_path: Path, exact: Flash) -> None:
    """The model trains on plain rows and on a tree, with the stand-ins and with the CPU's kernels."""
    folder = write_tiny(tmp_path / "m", MICRO, seed=3)
    ids = torch.randint(0, 500, (3, 60), generator=torch.Generator().manual_seed(1)).tolist()
    trunk = [[*ids[0][:30], *row[30:]] for row in ids]
    weighted = [(row, [0.0] * 35 + [1.0] * 25) for row in trunk]
    for batch in (from_rows(weighted), from_branches(weighted, 30)):
        found = {}
        for fused in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                if not fused:
                    patch.setattr(flash, "_DEVICES", ("cuda",))
                torch.manual_seed(0)
                model = lora.attach_adapter(load_model(folder, dtype="float32", device="cpu"), rank=4, expert_rank=2)
                for _, parameter in lora.trainable_parameters(model):
                    torch.nn.init.normal_(parameter, std=0.1)
                before = len(exact.calls)
                loss = model(**batch.inputs()).loss
                loss.backward()
                assert (len(exact.calls) > before) is fused
                grads = {name: p.grad for name, p in lora.trainable_parameters(model)}
                found[fused] = grads | {"loss": loss.detach()}
        for name, truth in found[False].items():
            assert float((found[True][name] - truth).norm()) < 1e-4 * float(truth.norm()), name


# The trial at first use


@pytest.mark.parametrize("dtype", flash.DTYPES)
def test_good_kernels_pass_the_trial_once(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    fake = install(monkeypatch, Flash())
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert flash.serves(CPU, dtype, 64)
        tried = len(fake.calls)
        assert flash.serves(CPU, dtype, 64)
    assert tried == len(fake.calls) == 6  # forward and backward of three kinds of rows
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrong", ["no window", "wide window", "narrow window", "heads", "own lse"])
def test_wrong_kernels_are_found_out(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """The window is off by one key, heads use other heads' keys, or the backward pass ignores the log-sum-exp."""
    fake = install(monkeypatch, Flash(wrong))
    for dtype in flash.DTYPES:
        with pytest.warns(RuntimeWarning, match=r"takes the plain form, which is slower: .* rows is off by"):
            assert not flash.serves(CPU, dtype, 64)
    tried = len(fake.calls)
    assert not flash.serves(CPU, torch.bfloat16, 64)  # no second warning, no second trial
    assert len(fake.calls) == tried


def test_kernels_that_raise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Flash())

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")

    monkeypatch.setattr(flash, "_FORWARD", refuse)
    with pytest.warns(RuntimeWarning, match=r"\(RuntimeError: FlashAttention only supports Ampere GPUs or newer\.\)"):
        assert not flash.serves(CPU, torch.bfloat16, 64)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(flash, "_FORWARD", full)
    with pytest.raises(torch.OutOfMemoryError):
        flash.serves(CPU, torch.float16, 64)


def test_attention_falls_back_to_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, Flash("wide window"))
    q, k = torch.randn(4, 40, 8).bfloat16(), torch.randn(2, 40, 8).bfloat16()
    segments = Segments(((0, 40),), ((),), torch.arange(40))
    with pytest.warns(RuntimeWarning, match="plain form"):
        found = attend(q, k, k, torch.zeros(4), segments, scale=0.3, window=4)
    tried = len(fake.calls)
    monkeypatch.setattr(flash, "_DEVICES", ("cuda",))
    assert torch.equal(found, attend(q, k, k, torch.zeros(4), segments, scale=0.3, window=4))
    assert len(fake.calls) == tried


def test_what_the_kernels_are_not_made_for_is_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, Flash())
    assert not flash.serves(CPU, torch.float32, 64)
    assert not flash.serves(CPU, torch.bfloat16, 20)
    assert not flash.serves(CPU, torch.bfloat16, 512)
    assert not flash.serves(torch.device("meta"), torch.bfloat16, 64)
    assert not fake.calls
    monkeypatch.undo()
    assert not flash.serves(CPU, torch.bfloat16, 64)  # a CPU has its own kernel


def test_the_bound_of_the_trial_is_near_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Good kernels pass with half the bound. The least wrong kernel fails with twice the bound."""
    install(monkeypatch, Flash())
    for dtype in flash.DTYPES:
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(flash, "ROUNDINGS", flash.ROUNDINGS / 2)
            assert not list(flash._differences(CPU, dtype, 64))
    install(monkeypatch, Flash("wide window"))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "ROUNDINGS", flash.ROUNDINGS * 2)
        assert list(flash._differences(CPU, torch.bfloat16, 64))
