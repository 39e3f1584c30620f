"""Tests of the plan's figures against published totals, models on the meta device, and measured peaks."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import GptOssConfig

from ossia import recipes
from ossia.adapters import apply as lora
from ossia.adapters.layout import lora_parameters, lora_targets
from ossia.checkpoint.layout import Shape, bytes_of, config_json, tensors
from ossia.checkpoint.tiny import MICRO, TINY, write_tiny
from ossia.config import LoraSection, Recipe
from ossia.errors import DoesNotFitError, UserError
from ossia.kernels.cpu import mxfp4
from ossia.model import batch, loss
from ossia.model.load import load_model
from ossia.model.modeling import OssiaForCausalLM, empty
from ossia.plan import Examples, FoundModel, Machine, doctor, estimate, find_model, memory, speed
from ossia.plan.inputs import Disk, head_rows
from ossia.plan.work import Work, flops_per_token, work
from ossia.sequences.sharing import Sharing
from support.export_samples import make_base, stock_adapter

ALONE = Sharing(False, "test")
PUBLISHED = {"gpt-oss-20b": Shape.GPT_OSS_20B, "gpt-oss-120b": Shape.GPT_OSS_120B}


def meta(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> OssiaForCausalLM:
    return empty(GptOssConfig(**config_json(shape)), dtype)


def found(shape: Shape, folder: Path | None = Path()) -> FoundModel:
    return FoundModel("model", shape, folder, shape.vocabulary)


def machine(memory: float, device: str = "cpu", dtype: str = "bfloat16", disk: float = 1e12) -> Machine:
    disks = Disk("runs", int(disk), 1), Disk("cache", int(disk), 1)
    return Machine(device, "test", dtype, "test", int(memory), "test", *disks)


# Parameters and bytes


@pytest.mark.parametrize(
    ("shape", "weights", "attention", "experts"),
    # Weights have the sizes of the published checkpoints. Adapters have rank 16 and rank 8, computed by hand.
    [(Shape.GPT_OSS_20B, 13.761e9, 7.96e6, 88.5e6), (Shape.GPT_OSS_120B, 65.249e9, 11.94e6, 530.8e6)],
)
def test_published_sizes(shape: Shape, weights: float, attention: float, experts: float) -> None:
    lines = memory.lines(Recipe(), found(shape), 1024, "cpu", "bfloat16")
    resident = sum(line.bytes for line in lines if line.name in ("experts", "other weights"))
    assert resident == bytes_of(shape) == pytest.approx(weights, rel=1e-4)
    assert lora_parameters(shape, LoraSection(rank=16, targets=["attention"])) == pytest.approx(attention, rel=2e-3)
    assert lora_parameters(shape, LoraSection(expert_rank=8, targets=["experts"])) == pytest.approx(experts, rel=2e-3)


@pytest.mark.parametrize(("shape", "forward"), [(Shape.GPT_OSS_20B, 7.2e9), (Shape.GPT_OSS_120B, 10.3e9)])
def test_arithmetic_per_token(shape: Shape, forward: float) -> None:
    flops = flops_per_token(shape)
    assert flops["forward"] == pytest.approx(forward, rel=0.01)
    head = 2 * shape.hidden * shape.vocabulary
    # Everything runs forward, backward, and forward again. The head and the experts' second projection are not
    # repeated.
    again = flops["forward"] - head - 2 * shape.layers * shape.experts_per_token * shape.hidden * shape.intermediate
    assert flops["training"] == pytest.approx(2 * flops["forward"] + again, rel=1e-3)  # the router runs twice
    assert flops_per_token(shape, recompute=False)["training"] == pytest.approx(2 * flops["forward"])


def test_offload_takes_what_is_kept_off_the_gpu() -> None:
    kept = {}
    for offload in (False, True):
        recipe = Recipe.model_validate({"train": {"offload": offload}})
        lines = memory.lines(recipe, found(Shape.GPT_OSS_20B), 4096, "cuda", "bfloat16")
        kept[offload] = next(line.bytes for line in lines if line.name == "kept activations")
    assert kept[True] * Shape.GPT_OSS_20B.layers == kept[False]
    with pytest.raises(ValueError, match="needs recompute"):
        Recipe.model_validate({"train": {"offload": True, "recompute": False}})


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_model_has_the_planned_parameters(name: str) -> None:
    shape, recipe = PUBLISHED[name], recipes.load_recipe(f"{name}-lora")
    model = meta(shape)
    state = model.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {t.name: t.shape for t in tensors(shape)}
    assert sum(value.nbytes for value in state.values()) == bytes_of(shape)
    settings = recipe.lora.model_dump(exclude={"start_from"})
    trained = sum(p.numel() for _, p in lora.trainable_parameters(lora.attach_adapter(model, **settings)))
    assert trained == lora_parameters(shape, recipe.lora)


TARGETS = ["attention", "experts", "router", "embeddings", "head"]


@pytest.mark.parametrize("targets", [*([target] for target in TARGETS), TARGETS], ids="+".join)
def test_adapter_of_a_small_model(targets: list[Any]) -> None:
    settings = LoraSection(rank=5, expert_rank=3, router_rank=2, vocabulary_rank=7, targets=targets)
    for lora_settings in (settings, settings.model_copy(update={"attention_ranks": {"k_proj": 9}})):
        model = lora.attach_adapter(meta(TINY), **lora_settings.model_dump(exclude={"start_from"}))
        trained = list(lora.trainable_parameters(model))
        assert sum(p.numel() for _, p in trained) == lora_parameters(TINY, lora_settings)
        assert {p.dtype for _, p in trained} == {torch.float32}
        assert lora_targets(lora_settings) == targets


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["q_proj", "v_proj"], ["attention"]),
        (["k_proj", "1.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"], ["attention", "experts"]),
        (["mlp.router.weight", "embed_tokens", "lm_head"], ["router", "embeddings", "head"]),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_adapter_to_start_from_is_counted_as_it_is(tmp_path: Path, targets: list[str], names: list[str]) -> None:
    """The adapters are from stock PEFT. The judge is the model that training starts from."""
    base = make_base(tmp_path / "base")
    stock_adapter(base, tmp_path / "adapter", targets, rank_pattern={"q_proj": 3, "gate_up_proj": 2})
    settings = LoraSection(rank=64, expert_rank=64, start_from=str(tmp_path / "adapter"))
    model = lora.load_adapter(load_model(base, dtype="float32", device="cpu"), tmp_path / "adapter", trainable=True)
    assert lora_parameters(MICRO, settings) == sum(p.numel() for _, p in lora.trainable_parameters(model))
    assert lora_targets(settings) == names


def test_adapter_to_start_from_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an adapter"):
        lora_parameters(TINY, LoraSection(start_from=str(tmp_path / "missing")))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    with pytest.raises(UserError, match="cannot be read"):
        lora_parameters(TINY, LoraSection(start_from=str(tmp_path)))


def test_an_adapted_head_is_computed_row_by_row() -> None:
    grouped = FoundModel("x", TINY, Path(), head_rows=300)
    assert head_rows(grouped, LoraSection()) == 300
    assert head_rows(grouped, LoraSection(targets=["head"])) == TINY.vocabulary


# Working memory: the formulas against the bytes that torch allocates


class Peak(TorchDispatchMode):
    """Counts the bytes of the living storages that operations made. Storages in `known` do not count."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.live:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


SMALL = Shape(
    layers=3, hidden=128, intermediate=128, experts=4, heads=4, kv_heads=2, head_dim=32, vocabulary=256
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        (SMALL, [200]),
        (SMALL.replace(hidden=256, intermediate=160, heads=8, kv_heads=4), [32] * 3),
        (SMALL.replace(experts_per_token=2), [64] * 3),
    ],
)
def test_peak_of_a_micro_batch_is_as_planned(shape: Shape, rows: list[int], recompute: bool, dtype: str) -> None:
    peak = measured_peak(shape, rows, recompute, dtype)
    recipe = Recipe.model_validate(
        {
            "data": {"max_tokens": max(rows)},
            "lora": {"rank": 4, "expert_rank": 2},
            "train": {"tokens_per_micro_batch": sum(rows), "examples_per_step": len(rows), "recompute": recompute},
        }
    )
    lines = {line.name: line.bytes for line in memory.lines(recipe, found(shape), max(rows), "cpu", dtype)}
    planned = lines["gradients"] + lines["kept activations"] + lines["working memory"]
    assert planned == pytest.approx(peak, rel=0.2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_peak_of_a_micro_batch_with_every_target(dtype: str) -> None:
    settings = {"rank": 4, "expert_rank": 2, "targets": TARGETS}
    peak = measured_peak(SMALL, [200], True, dtype, settings)
    recipe = Recipe.model_validate(
        {
            "data": {"max_tokens": 200},
            "lora": settings,
            "train": {"tokens_per_micro_batch": 200, "examples_per_step": 1},
        }
    )
    lines = {line.name: line.bytes for line in memory.lines(recipe, found(SMALL), 200, "cpu", dtype)}
    planned = lines["gradients"] + lines["kept activations"] + lines["working memory"]
    assert planned == pytest.approx(peak, rel=0.2)


def measured_peak(
    shape: Shape, rows: list[int], recompute: bool, dtype: str, settings: dict[str, Any] | None = None
) -> int:
    """Return the peak bytes of a forward and backward pass, without the parameters."""
    kind = getattr(torch, dtype)
    model = meta(shape, kind)
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if value.dtype == torch.uint8:
            low, high = (0, 256) if name.endswith("blocks") else (118, 122)
            state[name] = torch.randint(low, high, value.shape, dtype=torch.uint8, generator=generator)
        else:
            state[name] = (torch.randn(value.shape, generator=generator) * 0.1).to(kind)
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    tuned = lora.attach_adapter(model, **(settings or {"rank": 4, "expert_rank": 2})).train()
    if recompute:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    ids = torch.randint(0, shape.vocabulary, (sum(rows),), generator=generator).split(rows)
    inputs = batch.from_rows([(row.tolist(), [1.0] * len(row)) for row in ids]).inputs()
    gc.collect()
    mxfp4._scratch.__dict__.clear()  # the scratch of an earlier test would count as new
    with Peak([*tuned.parameters(), *tuned.buffers(), *inputs.values()]) as counted:
        tuned(**inputs).loss.backward()
    return counted.peak


def test_chunk_of_logits_is_the_losss() -> None:
    assert memory.LOGITS == loss.CHUNK_LOGITS


# Steps, micro-batches, time


@pytest.mark.parametrize(
    ("count", "epochs", "steps"),
    [(1, 0.5, 1), (1, 1.0, 1), (1, 2.5, 3), (16, 1.0, 1), (16, 2.5, 3), (33, 0.5, 2), (33, 1.0, 3), (33, 2.5, 8)],
)
def test_steps_of_sixteen_examples(count: int, epochs: float, steps: int) -> None:
    examples = Examples(count, count * 100, count * 50, 100, 0, "test")
    assert work(Recipe.model_validate({"train": {"epochs": epochs}}), examples, ALONE).steps == steps
    assert work(Recipe.model_validate({"train": {"epochs": epochs, "steps": 7}}), examples, ALONE).steps == 7


def test_micro_batches_and_validations() -> None:
    recipe = Recipe.model_validate(
        {"data": {"max_tokens": 100}, "train": {"tokens_per_micro_batch": 400, "steps": 101}}
    )
    examples = Examples(count=1000, tokens=100_000, trained=50_000, longest=100, validation_tokens=900, source="test")
    assert work(recipe, examples, ALONE) == Work(steps=101, micro_batches=404, tokens=161_600, validations=3)


def test_time_is_linear_in_the_steps_and_counts_validation() -> None:
    speeds = speed.Speed(1e12, 1e-3, 2e-3, 1e-6, 2e-6, 1e-9, 2e-9, "test")
    examples = Examples(100, 100_000, 50_000, 2000, 0, "test")
    totals = []
    for steps in (10, 20):
        recipe = Recipe.model_validate({"train": {"steps": steps}})
        plan = estimate(recipe, found(Shape.GPT_OSS_20B), examples, machine(1e12), speed=speeds)
        assert plan.seconds is not None
        assert plan.seconds["validation"] == 0
        totals.append(sum(plan.seconds.values()))
    assert totals[1] == pytest.approx(2 * totals[0])
    # A step has 16,000 tokens, which are two micro-batches of 8192. There are 24 layers of 32 experts.
    # Two thirds of the forward pass run again.
    fixed = 10 * 2 * 24 * 32 * (5 / 3 * 1e-3 + 2e-3)
    tokens = 10 * 16_000 * 4 * 24 * (5 / 3 * 1e-6 + 2e-6)
    recipe = Recipe.model_validate({"train": {"steps": 10}})
    plan = estimate(recipe, found(Shape.GPT_OSS_20B), examples, machine(1e12), speed=speeds)
    assert plan.seconds is not None
    assert plan.seconds["experts"] == pytest.approx(fixed + tokens)


# Shared prefixes


def sharing_plan(shared: int | None, **train: Any) -> Any:
    """Return the plan for 1,000 examples of 1,000 tokens. A fifth of the tokens is trained."""
    examples = Examples(1000, 1_000_000, 200_000, 2000, 0, "test", shared)
    targets = train.pop("targets", ["attention"])
    recipe = Recipe.model_validate({"lora": {"targets": targets}, "train": train})
    speeds = speed.Speed(1e12, 1e-3, 2e-3, 1e-6, 2e-6, 1e-9, 2e-9, "test")
    return estimate(recipe, found(Shape.GPT_OSS_20B), examples, machine(1e12), speed=speeds)


def test_shared_prefixes_are_work_once() -> None:
    alone, shared = sharing_plan(250_000, share_prefixes="off"), sharing_plan(250_000)
    assert not alone.sharing.on and shared.sharing.on
    assert "250,000 tokens instead of 1,000,000 (4.00x)" in shared.sharing.reason
    assert shared.work.steps == alone.work.steps == 63  # a step is a number of examples
    assert alone.work.tokens == 4 * shared.work.tokens
    assert alone.work.micro_batches == 63 * 2 and shared.work.micro_batches == 63
    assert shared.seconds["experts"] < 0.55 * alone.seconds["experts"]
    # The trained tokens stay the same. So the head has as many rows, and its share of the tokens is larger.
    assert shared.seconds["head and loss"] == pytest.approx(alone.seconds["head and loss"])
    assert shared.flops_per_token > alone.flops_per_token
    assert shared.as_dict()["sharing"] == {"on": True, "reason": shared.sharing.reason}


@pytest.mark.parametrize(
    ("shared", "train", "on", "said"),
    [
        (None, {}, False, "no data to count"),
        (990_000, {}, False, "next to nothing to save"),
        (990_000, {"share_prefixes": "on"}, True, "1.01x"),
        (500_000, {"share_prefixes": "off"}, False, "is off"),
        (500_000, {"targets": ["router"]}, False, "load-balancing"),
        (500_000, {"targets": ["router"], "balance_loss": 0.0}, True, "2.00x"),
    ],
)
def test_the_plan_foretells_whether_prefixes_are_shared(
    shared: int | None, train: dict[str, Any], on: bool, said: str
) -> None:
    plan = sharing_plan(shared, **train)
    assert plan.sharing.on is on and said in plan.sharing.reason
    assert plan.work.tokens == round(63 * 16 * ((shared or 0) if on else 1_000_000) / 1000)


def test_the_plan_refuses_what_training_would() -> None:
    with pytest.raises(UserError, match="sharing would not be exact"):
        sharing_plan(500_000, targets=["router"], share_prefixes="on")


def test_speed_is_measured() -> None:
    measured = speed.measure(MICRO, "cpu", "float32")
    numbers = [value for value in vars(measured).values() if isinstance(value, float)]
    assert len(numbers) == 7
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert measured.score_forward > 0
    assert measured.expert_forward + measured.token_forward > 0
    assert "measured" in measured.note


# The verdict


def plan_20b(have: float, **kwargs: Any) -> Any:
    recipe = Recipe.model_validate(kwargs.pop("recipe", {"train": {"tokens_per_micro_batch": 4096}}))
    place = machine(have, **kwargs)
    return estimate(recipe, found(Shape.GPT_OSS_20B), Examples.assumed(recipe), place)


def test_verdict_follows_the_memory() -> None:
    need = plan_20b(1e12, device="cuda").memory_needed
    assert plan_20b(need / 0.89, device="cuda").verdict == "fits"
    assert plan_20b(need / 0.95, device="cuda").verdict == "tight"
    too_small = plan_20b(need * 0.99, device="cuda")
    assert too_small.verdict == "does not fit"
    assert "memory" in too_small.reasons[0]
    with pytest.raises(DoesNotFitError) as error:
        too_small.require_fit()
    assert error.value.exit_code == 3


def test_mapped_weights_may_stay_on_disk_on_a_cpu_only() -> None:
    recipe = {"data": {"max_tokens": 256}, "train": {"tokens_per_micro_batch": 256}}
    plan = plan_20b(8e9, recipe=recipe)
    assert plan.memory_unmapped < 8e9 < plan.memory_needed
    assert plan.verdict == "tight"
    assert "read" in plan.reasons[0]
    assert plan_20b(8e9, recipe=recipe, device="cuda").verdict == "does not fit"
    # In float32 the other weights are copied, so they cannot be mapped.
    wide = plan_20b(8e9, recipe=recipe, dtype="float32")
    assert wide.memory_unmapped - plan.memory_unmapped > 7e9
    assert wide.verdict == "does not fit"


@pytest.mark.parametrize("have", [34e9, 24e9, 18e9, 16.5e9])
def test_proposed_changes_make_it_fit(have: float) -> None:
    start = {"train": {"recompute": False, "tokens_per_micro_batch": 8192}}
    plan = plan_20b(have, recipe=start, device="cuda")
    assert plan.verdict == "does not fit"
    assert plan.changes
    changed = recipes.parse_recipe(
        "train: {recompute: false, tokens_per_micro_batch: 8192}", where="test", overrides=plan.changes
    )
    again = estimate(changed, found(Shape.GPT_OSS_20B), plan.examples, plan.machine)
    assert again.verdict != "does not fit"


def test_no_change_is_proposed_when_none_helps() -> None:
    plan = plan_20b(10e9, device="cuda")
    assert plan.verdict == "does not fit"
    assert plan.changes == ()


def test_disk_counts_checkpoints_and_a_missing_model() -> None:
    recipe = Recipe()
    examples = Examples.assumed(recipe)
    small = machine(1e12, disk=10e9)
    assert estimate(recipe, found(Shape.GPT_OSS_20B), examples, small).verdict == "fits"
    missing = estimate(recipe, found(Shape.GPT_OSS_20B, None), examples, small)
    assert missing.verdict == "does not fit"
    assert "disk" in missing.reasons[0]
    assert missing.downloads[0].bytes == bytes_of(Shape.GPT_OSS_20B)
    trained = lora_parameters(Shape.GPT_OSS_20B, recipe.lora)
    assert missing.disk_needed == (2 + 2) * 12 * trained


def test_plan_as_json_has_everything() -> None:
    plan = plan_20b(17e9, device="cuda")
    read = json.loads(json.dumps(plan.as_dict()))
    assert read["memory_needed"] == sum(line["bytes"] for line in read["memory"])
    assert read["verdict"] == "does not fit"
    assert read["recipe"]["train"]["tokens_per_micro_batch"] == 4096


# Models, data and machines


def test_find_model(tmp_path: Path) -> None:
    for name in ("gpt-oss-20b", "openai/gpt-oss-20b"):
        assert find_model(name).shape == Shape.GPT_OSS_20B
    assert find_model("openai/gpt-oss-120b").shape == Shape.GPT_OSS_120B
    made = find_model(str(write_tiny(tmp_path / "tiny", MICRO)))
    assert made.shape == MICRO
    assert made.folder == tmp_path / "tiny"
    assert made.head_rows == MICRO.vocabulary
    with pytest.raises(UserError):
        find_model("openai/gpt-oss-21b")
    with pytest.raises(UserError, match=r"config\.json"):
        find_model(str(tmp_path))


def test_rows_of_the_head_that_are_equal_are_computed_once() -> None:
    model = find_model("example:multilingual/base.safetensors")
    assert model.shape.vocabulary == 201_088
    assert model.head_rows < 20_000


def test_examples_are_counted() -> None:
    class Row:
        trained_tokens = 2

        def __len__(self) -> int:
            return 3

    counted = Examples.counted([Row(), Row()], [Row()])
    assert (counted.count, counted.tokens, counted.trained, counted.longest) == (2, 6, 4, 3)
    assert counted.validation_tokens == 3
    assert "assumed" in Examples.assumed(Recipe()).source


def test_machine_here_follows_the_recipe() -> None:
    here = Machine.here(Recipe.model_validate({"model": {"device": "cpu", "dtype": "bfloat16"}}).model)
    assert (here.device, here.dtype) == ("cpu", "bfloat16")
    assert here.memory > 0
    assert here.runs.free > 0


def test_doctor_reports_without_telling_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    checks = {check.name: check for check in doctor.examine()}
    assert {"python", "torch", "transformers", "memory", "hub", "tokenizer", "recipe gpt-oss-20b-lora"} <= set(checks)
    assert "a token is set" in checks["hub"].found
    assert "secret" not in repr(checks)
    assert all(check.status == "ok" or check.do for name, check in checks.items() if not name.startswith("recipe"))


def test_doctor_survives_a_check_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.hardware, "memory", lambda: 1 / 0)
    checks = {check.name: check for check in doctor.examine()}
    assert checks["memory"].status == "fail"
    assert "ZeroDivisionError" in checks["memory"].found
    assert checks["hub"].status == "ok"


def test_doctor_judges_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.10.1", "transformers": "5.99.0", "peft": "0.21.2"}

    def version(name: str) -> str:
        if name not in versions:
            raise doctor.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    status = {check.name: check.status for check in doctor._libraries()}
    assert status == {"torch": "fail", "transformers": "warn", "peft": "ok", "accelerate": "fail"}
