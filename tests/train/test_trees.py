"""Tests that training on prefix trees equals training on separate sequences: loss, every gradient, and fifty steps.

The judge computes one sequence per turn, each alone. For some sets, stock transformers (eager) is a second judge.

In float64 the model has transformers' floating-point experts and trains every parameter. RMS norms are the only part
that would round to float32, and `ossia.model.norm` does not round float64. Rotary tables are float32, and they depend
only on the position.

In float32 the experts are packed and adapters are on every target. In some sets, a rounding error may change a token's
choice of experts. Such sets are left out.
"""

from __future__ import annotations

import json
import operator
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GptOssConfig

from ossia import events, recipes, runs
from ossia.checkpoint.layout import config_json
from ossia.checkpoint.tiny import MICRO, random_weights, write_tiny
from ossia.errors import UserError
from ossia.model.batch import from_rows
from ossia.model.load import load_model
from ossia.model.modeling import OssiaForCausalLM
from ossia.sequences.order import conversations_of
from ossia.sequences.sharing import Obstacles, Saving, Sharing, decide, estimated_saving, may_share
from ossia.sequences.weighting import weighted
from ossia.train import supervised
from ossia.train.steps import Collator, model_obstacles
from ossia.train.supervised import train
from ossia.train.trainer import ConversationOrder
from support.lora_samples import TARGETS, adapted, reference_loss, relative, stock
from support.tree_samples import Example, Plan, conversation, sets

MARGIN = 2e-5
"""The least difference between the router logits of the last chosen expert and the next one (float32)."""
BUDGETS = [10_000, 400]
"""Tokens of a micro-batch: one for everything, or trees cut into pieces. No sequence is longer than the second."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("micro") / "m", MICRO, seed=7)


@pytest.fixture(scope="module")
def double() -> OssiaForCausalLM:
    """A model with all parameters in float64 and trained. Its experts are floating-point."""
    values = {key: value for key, value in config_json(MICRO).items() if key != "quantization_config"}
    model = OssiaForCausalLM(GptOssConfig.from_dict(values)).double()
    model.set_experts_implementation("eager")  # torch's grouped product does not support float64
    model.load_state_dict({name: weight.double() for name, weight in random_weights(MICRO, seed=7).items()})
    assert all(parameter.requires_grad for parameter in model.parameters())
    return model


@pytest.fixture(scope="module")
def single(folder: Path) -> nn.Module:
    """A model with packed experts, adapters on every target, and trained sinks, norms and biases."""
    model = adapted(folder, TARGETS)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not name.endswith(("_blocks", "_scales")):
            frozen = ("lm_head.base", "embed_tokens.base", "proj_bias")  # a frozen head, and packed experts' biases
            parameter.requires_grad_(not any(part in name for part in frozen))
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def separate(model: Any, examples: Sequence[Example], denominator: float) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and its gradients, computed one sequence at a time."""
    model.zero_grad()
    total = 0.0
    for example in examples:
        loss = model(**from_rows([(example.ids, example.weights)]).inputs(), denominator=denominator).loss
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def shared(model: Any, batch: dict[str, Any], denominator: float) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and its gradients, computed from the micro-batches of a step."""
    model.zero_grad()
    total = 0.0
    for inputs in batch["micro_batches"]:
        loss = model(**inputs, denominator=denominator).loss
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def weight_of(examples: Sequence[Example]) -> float:
    return sum(sum(example.weights[1:]) for example in examples)


@contextmanager
def margins(model: nn.Module) -> Iterator[list[float]]:
    """Yield a list that gets the least margin between the last chosen expert and the next for each call of a router."""
    found: list[float] = []

    def watch(module: Any, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        top = output[0].detach().topk(module.top_k + 1, -1).values
        found.append(float((top[:, -2] - top[:, -1]).min()))

    hooks = [m.register_forward_hook(watch) for name, m in model.named_modules() if name.endswith("mlp.router")]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def test_in_double_precision_loss_and_gradients_are_those_of_separate_sequences(double: OssiaForCausalLM) -> None:
    worst = [0.0, 0.0]

    @given(sets(), st.sampled_from(BUDGETS))
    @settings(max_examples=120, deadline=None, derandomize=True)
    def check(examples: list[Example], budget: int) -> None:
        denominator = weight_of(examples) or 1.0
        batch = Collator(budget)(examples)
        loss, grads = shared(double, batch, denominator)
        wanted, wanted_grads = separate(double, examples, denominator)
        worst[0] = max(worst[0], abs(loss - wanted))
        assert abs(loss - wanted) <= 1e-12
        assert grads.keys() == wanted_grads.keys()
        for name, grad in wanted_grads.items():
            if grad.norm() > 0:
                worst[1] = max(worst[1], relative(grads[name], grad))
                assert relative(grads[name], grad) <= 1e-10, name
            else:
                assert not grads[name].any(), name

    check()
    assert worst[0] > 0 and worst[1] > 0  # rounding shows that these are two computations


def test_in_single_precision_every_gradient_is_that_of_separate_sequences(single: nn.Module) -> None:
    names = {name for name, parameter in single.named_parameters() if parameter.requires_grad}
    parts = ("sinks", "lora_A", "lora_B", "layernorm", "q_proj", "router", "lora_embedding_A", "lm_head", "gate_up")
    assert all(any(part in name for name in names) for part in parts)
    met: set[str] = set()

    @given(sets(), st.sampled_from(BUDGETS))
    @settings(max_examples=120, deadline=None, derandomize=True)
    def check(examples: list[Example], budget: int) -> None:
        denominator = weight_of(examples)
        assume(denominator > 0)
        with margins(single) as gaps:
            loss, grads = shared(single, Collator(budget)(examples), denominator)
        assume(min(gaps) > MARGIN)
        wanted, wanted_grads = separate(single, examples, denominator)
        assert abs(loss - wanted) <= 1e-5 * abs(wanted)
        for name, grad in wanted_grads.items():
            if grad.norm() > 0:
                met.add(name)
                assert relative(grads[name], grad) <= 1e-5, name

    check()
    assert met == names


def test_the_loss_is_that_of_stock_transformers(folder: Path) -> None:
    theirs, model = stock(folder), adapted(folder)
    model.get_base_model().eval()

    @given(sets())
    @settings(max_examples=12, deadline=None, derandomize=True)
    def check(examples: list[Example]) -> None:
        denominator = weight_of(examples)
        assume(denominator > 0)
        with torch.no_grad(), model.disable_adapter(), margins(model) as gaps:
            loss = sum(
                model(**inputs, denominator=denominator).loss.item()
                for inputs in Collator(500)(examples)["micro_batches"]
            )
        assume(min(gaps) > MARGIN)
        with torch.no_grad():
            wanted = reference_loss(theirs, [(example.ids, example.weights) for example in examples]).item()
        assert loss == pytest.approx(wanted, rel=1e-5)

    check()


@pytest.mark.parametrize("weighting", ["token", "turn", "conversation"])
def test_weighting_is_the_same_with_and_without_sharing(double: OssiaForCausalLM, weighting: Any) -> None:
    examples = conversation(Plan(20, ((6, (9,), 9, 5), (6, (), 30, 1), (1, (), 1, 18))), random.Random(0), [5] * 20)
    examples += [examples[0], Example([7, 8, 9], [0.0, 0.0, 0.0])]
    examples = [replace(e, conversation=c, turn=n) for n, (e, c) in enumerate(zip(examples, "aaabc", strict=True))]
    losses = []
    for share in (True, False):
        batch = Collator(1000, share)(weighted(examples, weighting))
        weight = sum(float(inputs["weights"].sum()) for inputs in batch["micro_batches"])
        losses.append(shared(double, batch, weight if weighting == "token" else batch["examples"])[0])
    each = [separate(double, [example], 1.0)[0] for example in examples]
    weights = [sum(example.weights) for example in examples]
    if weighting == "token":
        assert losses == pytest.approx([sum(each) / sum(weights)] * 2, rel=1e-6)
    elif weighting == "turn":  # the mean of the examples' means, without examples that train nothing
        assert losses == pytest.approx([sum(e / w for e, w in zip(each, weights, strict=True) if w) / 4] * 2, rel=1e-6)
    else:  # three turns of one conversation, and one turn of another
        means = sum(each[:3]) / sum(weights[:3]), each[3] / weights[3]
        assert losses == pytest.approx([sum(means) / 2] * 2, rel=1e-6)


def test_a_conversation_of_several_steps_counts_as_much_as_one_that_shares_a_step() -> None:
    long, short = chats(1, turns=8), chats(4, turns=1, seed=1)
    made = weighted([*long, *short], "conversation")
    sums = [sum(example.weights) for example in made]
    assert sum(sums) == pytest.approx(12)  # one per example, which is the divisor of a step
    assert sum(sums[:8]) == pytest.approx(12 / 5) and sums[8:] == pytest.approx([12 / 5] * 4)
    assert conversations_of(made) == [[*range(8)], [8], [9], [10], [11]]
    assert [sum(example.weights) for example in weighted([*long, *short], "turn")] == pytest.approx([1.0] * 12)
    odd = [Example([1, 2, 3], [0.0, 1.0, -1.5]), Example([1, 2], [0.0, 0.0])]
    assert [list(example.weights) for example in weighted(odd, "turn")] == [[0.0, 1.0, -1.5], [0.0, 0.0]]


# The step: sharing, counting and the parts of processes.


def chats(count: int, turns: int = 4, seed: int = 0) -> list[Example]:
    """Return conversations with one system message and a learnable pattern: answers continue the question's count."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        history, name = [5, 6, 7, 8] * 6, object()
        for turn in range(turns):
            start = rng.randrange(10, 400)
            prompt = [*history, start, 9]
            thought, answer = [start + 3 * i for i in range(1, 9)], [start + 2 * i for i in range(1, 7)]
            ids = [*prompt, *thought, *answer, 2]
            made.append(Example(ids, [0.0] * len(prompt) + [1.0] * 15, [], name, turn))
            history = [*prompt, *answer, 1]
    return made


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_epoch_has_each_example_once_and_conversations_in_one_piece(
    count: int, per_step: int, epoch: int
) -> None:
    examples = chats(count, turns=3)
    order = ConversationOrder(conversations_of(examples), per_step, seed=1, steps_done=lambda: 0)
    steps = list(order.epoch(epoch))
    assert len(steps) == len(order)
    flat = [index for step in steps for index in step]
    assert sorted(flat) == list(range(len(examples)))
    assert all(len(step) == per_step for step in steps[:-1])
    assert all(flat[i : i + 3] == [flat[i], flat[i] + 1, flat[i] + 2] for i in range(0, len(flat), 3))


def test_the_order_of_an_epoch_is_its_own_and_a_resumed_run_finds_it() -> None:
    groups = conversations_of(chats(10))
    first, second = (list(ConversationOrder(groups, 4, 1, lambda: 0).epoch(epoch)) for epoch in (0, 1))
    assert first != second
    for done in (10, 13):
        assert list(ConversationOrder(groups, 4, 1, lambda done=done: done)) == second
    assert list(ConversationOrder(groups, 4, 2, lambda: 0)) != first


def test_repeated_conversations_and_examples_of_no_conversation_are_units_of_their_own() -> None:
    first, second = chats(1, turns=2), [Example([1, 2], [0.0, 1.0])] * 2
    assert conversations_of([*first, *first, *second]) == [[0, 1], [2, 3], [4], [5]]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_a_step_out_without_changing_it(double: OssiaForCausalLM, share: bool, processes: int) -> None:
    examples = chats(5)
    parts = [Collator(250, share, process=n, processes=processes)(examples) for n in range(processes)]
    tokens = [sum(inputs["input_ids"].numel() for inputs in part["micro_batches"]) for part in parts]
    assert all(inputs["input_ids"].numel() <= 250 for part in parts for inputs in part["micro_batches"])
    assert max(tokens) - min(tokens) <= 250 / 2
    with torch.no_grad():
        losses = [double(**inputs, denominator=1.0).loss.item() for part in parts for inputs in part["micro_batches"]]
        wanted = double(**from_rows((e.ids, e.weights) for e in examples).inputs(), denominator=1.0).loss.item()
    assert sum(losses) == pytest.approx(wanted, rel=1e-12)
    own = sum(map(len, examples))
    repeated = {part["repeated_tokens"] for part in parts}
    assert len(repeated) == 1 and {part["example_tokens"] for part in parts} == {own}
    if share:
        whole = sum(inputs["input_ids"].numel() for inputs in Collator(10_000)(examples)["micro_batches"])
        assert sum(tokens) == whole + repeated.pop() < own
    else:
        assert sum(tokens) == own and repeated == {0}


def test_a_step_smaller_than_the_job_leaves_a_process_without_micro_batches() -> None:
    parts = [Collator(64, process=n, processes=2)([Example([1, 2, 3], [0.0, 1.0, 1.0])]) for n in range(2)]
    assert [len(part["micro_batches"]) for part in parts] == [1, 0]


def test_an_example_longer_than_a_micro_batch_is_the_users_error() -> None:
    with pytest.raises(UserError, match="an example has 70 tokens, a micro-batch holds 64"):
        Collator(64)([Example([3] * 70, [1.0] * 70)])


# The decision to share.


def decided(wanted: Any, examples: list[Example], per_step: int, most: int, dropout: float = 0.0) -> Sharing:
    return decide(wanted, Obstacles(dropout), estimated_saving(examples, per_step, 0, most))


def test_auto_shares_where_it_saves_and_is_exact() -> None:
    examples = chats(2)
    assert decided("auto", examples, 8, 1000).on and "x)" in decided("auto", examples, 8, 1000).reason
    # If micro-batches cut a tree into single examples, sharing saves nothing.
    alike = [Example([*range(60), n], [0.0] * 60 + [1.0]) for n in (70, 80, 90)]
    assert decided("auto", alike, 3, 100).on and not decided("auto", alike, 3, 61).on
    single_turns = [Example([n, n + 1, n + 2], [0.0, 1.0, 1.0]) for n in range(10)]
    assert "next to nothing to save" in decided("auto", single_turns, 10, 1000).reason
    assert decided("on", single_turns, 10, 1000).on
    assert not decided("off", examples, 8, 1000).on
    inexact = decided("auto", examples, 8, 1000, dropout=0.1)
    assert not inexact.on and "dropout (0.1)" in inexact.reason
    with pytest.raises(UserError, match="would not be exact") as refused:
        decided("on", examples, 8, 1000, dropout=0.1)
    assert "dropout (0.1)" in (refused.value.why or "")
    with pytest.raises(UserError, match="an example has 61 tokens, a micro-batch holds 60"):
        decided("auto", alike, 3, 60)


def test_auto_wants_to_save_a_fiftieth() -> None:
    assert decide("auto", Obstacles(), Saving(1000, 980)).on and not decide("auto", Obstacles(), Saving(1000, 981)).on
    assert decide("on", Obstacles(), Saving(1000, 1000)).on
    assert not decide("on", Obstacles(), None).on and "no data" in decide("auto", Obstacles(), None).reason


def test_the_decision_is_said_in_a_sentence() -> None:
    assert str(decide("auto", Obstacles(), Saving(3000, 1500))) == (
        "shared prefixes are computed once, with the same loss and gradients: 1,500 tokens instead of 3,000 (2.00x)"
    )
    assert str(decide("off", Obstacles(), None)) == "prefixes are not shared, because train.share_prefixes is off"


def test_what_is_saved_counts_only_where_it_matters() -> None:
    assert may_share("auto", Obstacles()) and may_share("on", Obstacles()) and not may_share("off", Obstacles())
    assert not may_share("on", Obstacles(balance_loss=True))


def test_dropout_balance_loss_and_noise_stand_in_the_way() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.Dropout(0.0))
    assert model_obstacles(model) == Obstacles() and Obstacles().sentences() == []
    assert "load-balancing" in model_obstacles(model, balance=0.001).sentences()[0]
    assert "NEFTune" in model_obstacles(model, neftune_alpha=5.0).sentences()[0]
    model[0].neftune_noise_alpha = 5.0
    model[1].p = 0.1
    assert model_obstacles(model) == Obstacles(dropout=0.1, noise=True)
    assert [found.split()[0] for found in model_obstacles(model).sentences()] == ["dropout", "NEFTune's"]


# Runs.


def recipe(folder: Path, **values: Any) -> Any:
    sets_ = [f"train.{name}={json.dumps(value)}" for name, value in values.items()]
    text = f"name: t\nmodel: {{path: {folder}, dtype: float32, device: cpu}}\ndata: {{max_tokens: 128}}\n"
    text += "lora: {rank: 8, expert_rank: 4, vocabulary_rank: 16, vocabulary_alpha: 32, "
    return recipes.parse_recipe(text + "targets: [attention, experts, head]}\n", where="test", overrides=sets_)


def steps_of(run: runs.Run) -> list[events.Step]:
    return [event for event in events.read(run.path) if isinstance(event, events.Step)]


def test_a_run_with_a_trained_router_says_why_it_does_not_share(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    wanted = recipe(folder, steps=1, examples_per_step=4, tokens_per_micro_batch=256, samples=0)
    routed = wanted.model_copy(update={"lora": wanted.lora.model_copy(update={"targets": ["router"]})})
    run = runs.create(routed, "test")
    train(routed, run, chats(2), [])
    notes = [event.message for event in events.read(run.path) if isinstance(event, events.Note)]
    assert any("would not be exact: the load-balancing loss" in note for note in notes)
    (step,) = steps_of(run)
    assert step.tokens == step.example_tokens
    refused = routed.model_copy(update={"train": routed.train.model_copy(update={"share_prefixes": "on"})})
    with pytest.raises(UserError, match="sharing would not be exact"):
        train(refused, runs.create(refused, "test"), chats(2), [])


def test_a_run_takes_a_saving_that_was_counted_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    wanted = recipe(folder, steps=1, examples_per_step=4, tokens_per_micro_batch=256, samples=0)
    for counted in (Saving(900, 300), Saving(900, 899)):
        run = runs.create(wanted, "test")
        with monkeypatch.context() as patched:
            patched.delattr(supervised, "epoch_saving")  # it is not counted again
            train(wanted, run, chats(2), [], saving=counted)
        notes = [event.message for event in events.read(run.path) if isinstance(event, events.Note)]
        assert str(decide("auto", Obstacles(), counted)) in notes
        (step,) = steps_of(run)
        assert (step.tokens < step.example_tokens) == (counted.shared == 300)


def test_a_run_weighted_by_turns(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss is the mean over turns of their means. Answers of 5 and of 15 tokens count the same."""
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    examples = [*chats(1, turns=2), *(Example(e.ids[:-10], e.weights[:-10]) for e in chats(1, turns=2, seed=1))]
    losses = {}
    for weighting in ("token", "turn"):
        wanted = recipe(
            folder, steps=1, examples_per_step=4, tokens_per_micro_batch=256, samples=0, loss_weighting=weighting
        )
        run = runs.create(wanted, "test")
        train(wanted, run, examples, [])
        losses[weighting] = steps_of(run)[0].loss
    with torch.no_grad():
        model = load_model(folder, dtype="float32", device="cpu")
        each = [model(**from_rows([(e.ids, e.weights)]).inputs()).loss.item() for e in examples]
    weights = [sum(e.weights) for e in examples]
    assert losses["turn"] == pytest.approx(sum(each) / 4, rel=1e-5)
    assert losses["token"] == pytest.approx(sum(map(operator.mul, each, weights)) / sum(weights), rel=1e-5)
    assert abs(losses["turn"] - losses["token"]) > 1e-3


def test_an_interrupted_run_goes_on_with_the_same_trees(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    wanted = recipe(
        folder, steps=12, examples_per_step=6, tokens_per_micro_batch=130, checkpoint_every=5, samples=0,
        share_prefixes="on", deterministic=True,
    )  # fmt: skip
    whole, broken = (runs.create(wanted, "test") for _ in range(2))
    train(wanted, whole, chats(6), [])

    class PowerCut(BaseException):
        pass

    def cut_power(event: events.Event) -> None:
        if isinstance(event, events.Step) and event.step == 8:  # in the second or third epoch of four steps
            raise PowerCut

    with pytest.raises(PowerCut):
        train(wanted, broken, chats(6), [], watch=cut_power)
    train(wanted, broken, chats(6), [])
    told = [[(e.step, e.loss, e.tokens, e.repeated_tokens) for e in steps_of(run)] for run in (whole, broken)]
    assert told[0] == told[1] and len(told[0]) == 12
    assert any(repeated for *_, repeated in told[0])


def test_fifty_steps_with_and_without_sharing_have_one_loss_curve(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    curves, tokens, validations = {}, {}, {}
    for share in ("on", "off"):
        wanted = recipe(
            folder, steps=50, examples_per_step=8, tokens_per_micro_batch=256, learning_rate=0.01, evaluate_every=25,
            checkpoint_every=50, samples=0, recompute=False, share_prefixes=share,
        )  # fmt: skip
        run = runs.create(wanted, "test")
        train(wanted, run, chats(12), chats(3, seed=1))
        curves[share] = [event.loss for event in steps_of(run)]
        tokens[share] = [(event.tokens, event.example_tokens) for event in steps_of(run)]
        found = [event for event in events.read(run.path) if isinstance(event, events.Validation)]
        validations[share] = [(event.loss, event.channels["final"]) for event in found]
        notes = [event.message for event in events.read(run.path) if isinstance(event, events.Note)]
        assert any(("computed once" if share == "on" else "train.share_prefixes is off") in note for note in notes)
    assert len(curves["on"]) == 50
    assert sum(curves["on"][-5:]) < 2 / 3 * sum(curves["on"][:5])
    assert max(abs(a - b) for a, b in zip(curves["on"], curves["off"], strict=True)) < 1e-4
    assert torch.allclose(torch.tensor(validations["on"]), torch.tensor(validations["off"]), atol=1e-4)
    assert [own for _, own in tokens["on"]] == [own for _, own in tokens["off"]] == [used for used, _ in tokens["off"]]
    assert sum(used for used, _ in tokens["on"]) < 0.6 * sum(used for used, _ in tokens["off"])
