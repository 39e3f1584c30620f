"""Tests of the chunked loss against torch's own cross-entropy on full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ossia.model import loss
from ossia.model.loss import Head, HeadUpdate, linear_cross_entropy


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_equals_cross_entropy_of_full_logits(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk * 31)
    torch.manual_seed(chunk)
    hidden = torch.randn(17, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(31, (17,)), torch.rand(17)
    total, nll = linear_cross_entropy(hidden, Head.of(weight), targets, weights)
    truth = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(nll, truth.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(total, (truth * weights).sum(), rtol=0, atol=1e-12)
    mine = torch.autograd.grad(total * 3, (hidden, weight))
    other = torch.autograd.grad((truth * weights).sum() * 3, (hidden, weight))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_an_update_of_the_head_is_part_of_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk * 31)
    torch.manual_seed(chunk)
    shapes = [(17, 8), (3, 8), (31, 3)]
    hidden, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    weight, targets, weights = torch.randn(31, 8, dtype=torch.float64), torch.randint(31, (17,)), torch.rand(17)
    total, nll = linear_cross_entropy(hidden, Head(weight, update=HeadUpdate(a, b, 0.7)), targets, weights)
    truth = functional.cross_entropy(hidden @ (weight + 0.7 * b @ a).T, targets, reduction="none")
    torch.testing.assert_close(nll, truth.detach(), rtol=0, atol=1e-12)
    for inputs in ((hidden, a, b), (a,), (b,), (hidden,)):
        mine = torch.autograd.grad(total * 3, inputs, retain_graph=True)
        other = torch.autograd.grad((truth * weights).sum() * 3, inputs, retain_graph=True)
        for got, wanted in zip(mine, other, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_an_update_of_the_head_needs_one_chunk_of_logits_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation makes a larger tensor than the head, so the logits of all 64 tokens never exist."""
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 4 * 1000)
    hidden, a, b = torch.randn(64, 8, requires_grad=True), torch.randn(2, 8), torch.randn(1000, 2)
    update = HeadUpdate(a.requires_grad_(), b.requires_grad_(), 1.0)
    with _Largest() as made:
        total, _ = linear_cross_entropy(
            hidden, Head(torch.randn(1000, 8), update=update), torch.arange(64), torch.ones(64)
        )
        total.backward()
    assert made.largest == 8 * 1000  # the head itself


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_iter(out) if isinstance(tensor, torch.Tensor)]
        self.largest = max([self.largest, *(tensor.numel() for tensor in made)])
        return out


def test_equal_rows_of_a_frozen_head_are_grouped_without_changing_the_loss() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 8, dtype=torch.float64)
    shared = torch.randperm(40)[:30]
    weight[shared] = weight[-1].clone()
    weight[shared[0]] += 1e-9  # an almost equal row stays separate
    weight[-1] = weight[shared[1]]
    head = Head.of(weight)
    assert head.log_count_V is not None and len(head.weight_VD) <= 12
    hidden = torch.randn(64, 8, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(40, (64,)), torch.rand(64)
    assert torch.isin(targets, shared).any()
    total, nll = linear_cross_entropy(hidden, head, targets, weights)
    truth = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    # The logarithm of the count is kept in float32.
    torch.testing.assert_close(nll, truth.detach(), rtol=0, atol=1e-6)
    (mine,) = torch.autograd.grad(total, hidden)
    (other,) = torch.autograd.grad((truth * weights).sum(), hidden)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_a_head_of_different_rows_or_one_that_is_trained_is_left_alone() -> None:
    assert Head.of(torch.randn(10, 4)).log_count_V is None
    assert Head.of(torch.ones(10, 4).requires_grad_()).log_count_V is None
    one_column_equal = torch.randn(10, 4)
    one_column_equal[:, 0] = 1
    assert Head.of(one_column_equal).log_count_V is None
