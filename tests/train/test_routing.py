"""Tests of routing: its load, its drift from the base, and its balance against transformers' load-balancing loss."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.gpt_oss.modeling_gpt_oss import load_balancing_loss_func

from ossia import events, runs
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import UserError
from ossia.model.batch import from_rows
from ossia.model.load import load_model
from ossia.train import health, routing
from ossia.train.supervised import train
from support.lora_samples import stock
from support.train_samples import examples, losses, recipe

E, K = MICRO.experts, MICRO.experts_per_token
ROWS = [[(7 * i + row) % MICRO.vocabulary for i in range(length)] for row, length in enumerate((30, 11))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "micro", MICRO, seed=0)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))


def kept(run: runs.Run, kind: type[Any]) -> list[Any]:
    return [event for event in events.read(run.path) if isinstance(event, kind)]


def test_the_balance_loss_of_a_layer_is_transformers_own() -> None:
    generator = torch.Generator().manual_seed(0)
    for tokens in (1, 5, 300):
        logits_TE = torch.randn(tokens, E, generator=generator).mul(3).requires_grad_()
        mine = routing.balance_loss(logits_TE, routing.expert_load(logits_TE.topk(K).indices, E))
        theirs = load_balancing_loss_func((logits_TE,), E, K)
        assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
        gradients = [torch.autograd.grad(loss, logits_TE)[0] for loss in (mine, theirs)]
        assert torch.allclose(*gradients, rtol=1e-4, atol=1e-7)
    even = torch.zeros(8, E).scatter_(1, (torch.arange(8)[:, None] + torch.arange(K)) % E, 1e-3)
    assert routing.balance_loss(even, routing.expert_load(even.topk(K).indices, E)).item() == pytest.approx(K, rel=1e-3)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_stock_transformers_with_the_loss_added(model: Path, recompute: bool) -> None:
    theirs = stock(model)
    mine = load_model(model, dtype="float32", device="cpu")
    if recompute:
        mine.train()
        (getattr(mine, "activation_checkpointing_enable", None) or mine.gradient_checkpointing_enable)(
            {"use_reentrant": False}
        )
    routers = [layer.mlp.router.weight.requires_grad_() for layer in mine.model.layers]
    watch = routing.Routers(list(mine.model.layers))
    flat, scale = from_rows((ids, [1.0] * len(ids)) for ids in ROWS), 0.5
    with watch.training_pass(scale=scale):
        loss = mine(**flat.inputs()).loss
    loss.backward()

    total, logits = torch.zeros(()), [[] for _ in range(MICRO.layers)]
    for ids in ROWS:  # one row at a time, but the load-balancing loss is over the tokens of both
        out = theirs(torch.tensor([ids]), output_router_logits=True)
        log_p = out.logits[0, :-1].log_softmax(-1)
        total = total - log_p.gather(1, torch.tensor(ids)[1:, None]).sum()
        for kept_logits, layer in zip(logits, out.router_logits, strict=True):
            kept_logits.append(layer)
    nll = total / (sum(map(len, ROWS)) - len(ROWS))
    balance = sum(load_balancing_loss_func((torch.cat(layer),), E, K) for layer in logits) / MICRO.layers
    assert loss.item() == pytest.approx(nll.item(), abs=1e-5)  # the reported loss does not include it
    weights = [layer.mlp.router.weight for layer in theirs.model.layers]
    without = torch.autograd.grad(nll, weights, retain_graph=True)
    wanted = torch.autograd.grad(nll + scale * balance, weights)
    assert all((with_it - alone).norm() > 0.1 * alone.norm() for with_it, alone in zip(wanted, without, strict=True))
    for weight, expected in zip(routers, wanted, strict=True):
        assert weight.grad is not None
        assert (weight.grad - expected).norm() < 1e-4 * expected.norm()
    load_LE, (summed, tokens) = watch.take()
    assert tokens == sum(map(len, ROWS)) and (load_LE.sum(1) == K * tokens).all()  # recomputing counted nothing twice
    assert (summed / tokens).item() == pytest.approx(balance.item(), rel=1e-5)
    watch.close()


def test_load_entropy_and_drift() -> None:
    load_LE = torch.tensor([[10, 10, 10, 10], [40, 0, 0, 0], [20, 20, 0, 0]])
    assert routing.entropy(load_LE).tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert routing.shares(load_LE)[2].tolist() == [0.5, 0.5, 0.0, 0.0]
    indices = torch.tensor([[0, 3], [3, 1]])
    assert routing.expert_load(indices, 5).tolist() == [1, 1, 0, 2, 0]
    # Another order of the choices is not a change. One of four choices is different.
    assert routing.drift([torch.tensor([[3, 0], [3, 2]])], [indices]) == [0.25]


def test_collapse_is_measured_against_the_base() -> None:
    base = torch.tensor([[30, 20, 10, 10, 10, 10, 5, 5]] * 3)
    now = torch.tensor([[28, 22, 10, 10, 10, 10, 5, 5], [50, 48, 1, 1, 0, 0, 0, 0], [65, 5, 5, 5, 5, 5, 5, 5]])
    assert routing.collapsed(now, base) == [1, 2]
    assert routing.collapsed(base, base) == []


def test_a_collapse_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    watcher = health.RoutingHealth(examples(3), 64, every=1, emit=said.append)
    config = SimpleNamespace(num_local_experts=E)
    watched: Any = SimpleNamespace(config=config, parameters=list, modules=list, disable_adapter=contextlib.nullcontext)
    watcher.trainer = SimpleNamespace(model=watched)  # type: ignore[assignment]
    spread = [torch.stack([torch.randperm(E)[:K] for _ in range(200)]) for _ in range(2)]
    narrow = [spread[0], torch.arange(K).expand(200, K)]
    answers = iter([spread, spread, narrow, narrow, spread, narrow])
    monkeypatch.setattr(watcher, "_choices", lambda model: next(answers))
    drifts = [watcher._compare() for _ in range(5)]
    assert drifts[0] == [0.0, 0.0] and drifts[1][0] == 0.0 and drifts[1][1] > 0.3
    assert [note.level for note in said] == ["warning", "warning"]  # the second only after a recovery
    assert "routing of layer 1 has collapsed" in said[0].message


def test_a_run_reports_load_and_drift_and_logs_them(model: Path) -> None:
    wanted = recipe(model, steps=6, evaluate_every=4, learning_rate=0.05)
    run = runs.create(wanted, "test")
    train(wanted, run, examples(24), examples(4, seed=1))
    reports = kept(run, events.Routing)
    assert [report.step for report in reports] == [4, 6]
    steps = kept(run, events.Step)
    assert [report.tokens for report in reports] == [sum(s.tokens for s in steps[:4]), sum(s.tokens for s in steps[4:])]
    for report in reports:
        assert len(report.load) == len(report.entropy) == len(report.drift) == MICRO.layers
        assert [sum(shares) for shares in report.load] == pytest.approx([1.0] * MICRO.layers, abs=1e-3)
        assert report.balance_loss is None
    # The adapter changes the attention of layer 0, which is before the first router. So both layers drift.
    assert all(0 < share < 1 for share in reports[-1].drift)
    history = json.loads((run.checkpoint(6) / "trainer_state.json").read_text())["log_history"]
    logged = [entry for entry in history if "routing_drift_mean" in entry]
    assert [entry["step"] for entry in logged] == [4, 6]
    assert logged[-1]["routing_drift_most"] == pytest.approx(max(reports[-1].drift), abs=1e-4)
    assert logged[-1]["routing_entropy_least"] == pytest.approx(min(reports[-1].entropy), abs=1e-4)


def test_watching_changes_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = []
    for watching in (True, False):
        if not watching:
            monkeypatch.setattr(health.RoutingHealth, "on_log", lambda *_, **__: None)
        wanted = recipe(model, steps=5, evaluate_every=2)
        run = runs.create(wanted, "test")
        train(wanted, run, examples(16), examples(4, seed=1))
        curves.append(losses(run))
    assert curves[0] == curves[1]


def test_a_balance_loss_on_a_frozen_router_is_refused(model: Path) -> None:
    wanted = recipe(model, balance_loss=0.01)
    with pytest.raises(UserError, match="the router is frozen"):
        train(wanted, runs.create(wanted, "test"), examples(8), [])


@pytest.mark.parametrize(("settings", "note"), [({}, "coefficient 0.001"), ({"balance_loss": 0.5}, "0.5, as set")])
def test_a_trained_router_is_balanced_and_the_log_says_why(model: Path, settings: dict[str, float], note: str) -> None:
    wanted = recipe(model, ["attention", "router"], steps=6, evaluate_every=2, **settings)
    run = runs.create(wanted, "test")
    train(wanted, run, examples(24), [])
    assert any(note in event.message and event.level == "info" for event in kept(run, events.Note))
    values = [report.balance_loss for report in kept(run, events.Routing)]
    assert len(values) == 3 and all(value > K - 0.5 for value in values)


def test_the_gradient_of_a_step_does_not_depend_on_equal_micro_batches_of_it(model: Path) -> None:
    """Micro-batches count by their tokens, so the same micro-batch twice gives the gradient of one."""
    mine = load_model(model, dtype="float32", device="cpu")
    weight = mine.model.layers[0].mlp.router.weight.requires_grad_()
    watch = routing.Routers(list(mine.model.layers))
    # No token is supervised, so only the balance loss has a gradient.
    inputs = from_rows([(ROWS[0], [0.0] * len(ROWS[0]))]).inputs()

    def gradient(micro_batches: int) -> Tensor:
        weight.grad = None
        for _ in range(micro_batches):
            with watch.training_pass(scale=1.0 / micro_batches):
                loss = mine(**inputs, denominator=1.0).loss
            loss.backward()
        assert weight.grad is not None
        return weight.grad.clone()

    assert gradient(1).norm() > 0
    assert torch.allclose(gradient(1), gradient(2), rtol=1e-5, atol=1e-8)
    watch.close()
