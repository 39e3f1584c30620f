"""Tests of merged checkpoints against stock transformers and PEFT, and of the measured losses in four bits."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GptOssForCausalLM

from ossia.adapters import apply as lora
from ossia.adapters.config import WEIGHTS_FILE
from ossia.adapters.read import LoraDelta, read_adapter
from ossia.checkpoint import layout
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import MICRO
from ossia.errors import OssiaError, UserError
from ossia.export import ProgressFactory, job, rounding, verify
from ossia.export.job import Export
from ossia.export.merged import MergedModel
from ossia.export.source import find_source
from ossia.model.load import load_model
from support.export_samples import (
    ATTENTION,
    EXPERTS,
    PROMPT,
    float_weights,
    logits,
    make_base,
    stock_adapter,
    stock_model,
)
from support.lora_samples import TARGETS, adapted, relative

LARGE, SMALL = 2**-2, 2**-8
"""Steps of the adapters' numbers. They give updates larger than the weights, and updates that four bits lose."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base-model")


def export(base: Path, adapter: Path, out: Path, **settings: Any) -> Export:
    return job.write_export(find_source(str(adapter), str(base)), "hf", out, **settings)


def raw(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor by name, read with the safetensors package."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).view(torch.uint8).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def reload(folder: Path, **settings: Any) -> Any:
    """Load an export with stock transformers. No tensor may be missing, left over or of another shape."""
    model, info = GptOssForCausalLM.from_pretrained(folder, output_loading_info=True, **settings)
    assert not any(info.values()), info
    return model.eval()


def test_bf16_export_is_pefts_merge_rounded_once_and_says_the_same(base: Path, tmp_path: Path) -> None:
    tuned = stock_adapter(base, tmp_path / "adapter")
    unmerged = logits(tuned)
    done = export(base, tmp_path / "adapter", tmp_path / "out", experts="bf16")
    stock = reload(tmp_path / "out", dtype=torch.bfloat16)
    merged = {name: value.bfloat16() for name, value in tuned.merge_and_unload().state_dict().items()}
    found = stock.state_dict()
    assert found.keys() == merged.keys()
    for name, value in merged.items():
        assert torch.equal(found[name], value), name
    rounded = stock_model(base)
    rounded.load_state_dict(merged)
    said = logits(reload(tmp_path / "out", dtype=torch.float32))
    assert torch.equal(said, logits(rounded))
    torch.testing.assert_close(said, unmerged, rtol=0.05, atol=0.01)
    assert not torch.allclose(said, logits(stock_model(base)), rtol=0.05, atol=0.01)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert done.report["verified"]["logits"]["mean_kl"] < 1e-4 < done.report["verified"]["logits"]["effect_kl"]


def test_ossia_loads_what_it_exports_in_both_layouts(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter")
    for experts in ("bf16", "mxfp4"):
        out = tmp_path / experts
        export(base, tmp_path / "adapter", out, experts=experts)
        ours = load_model(out, dtype="float32", device="cpu")
        torch.testing.assert_close(logits(ours), logits(stock_model(out)), rtol=1e-4, atol=1e-5)


def test_mxfp4_export_loads_in_stock_transformers_with_our_values(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter")
    export(base, tmp_path / "adapter", tmp_path / "out", experts="mxfp4")
    CheckpointReader(tmp_path / "out").check()
    stock = reload(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    ours = float_weights(tmp_path / "out")
    assert stock.keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(stock[name].float(), value), name


@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
def test_what_the_adapter_does_not_touch_keeps_its_bytes(base: Path, tmp_path: Path, experts: Any) -> None:
    stock_adapter(base, tmp_path / "adapter", ["q_proj", "o_proj", EXPERTS[1]])
    export(base, tmp_path / "adapter", tmp_path / "out", experts=experts)
    before, after = raw(base), raw(tmp_path / "out")
    touched = ("q_proj.weight", "o_proj.weight", "down_proj_blocks", "down_proj_scales")
    left = [name for name in before if not name.endswith(touched)]
    if experts == "bf16":
        left = [name for name in left if "gate_up_proj_blocks" not in name and "gate_up_proj_scales" not in name]
    assert len(left) >= 2 * 13
    assert all(after[name] == before[name] for name in left)
    assert all(after[name] != before[name] for name in before if name.endswith("q_proj.weight"))


class Collected:
    """A writer without files, which joins the parts of every tensor in memory."""

    def __init__(self, model: MergedModel) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.copied: set[str] = set()
        self.survival: list[rounding.Survival] = []
        self.most_rows = 0
        for tensor in model:
            parts: list[list[torch.Tensor]] = [[] for _ in tensor.specs]
            for first, values in tensor.parts:
                for spec, so_far, value in zip(tensor.specs, parts, values, strict=True):
                    assert first == sum(map(len, so_far)), spec.name
                    so_far.append(value)
                    self.most_rows = max(self.most_rows, len(value))
            for spec, so_far in zip(tensor.specs, parts, strict=True):
                self.tensors[spec.name] = torch.cat(so_far)
                assert self.tensors[spec.name].shape == spec.shape
                self.copied |= {spec.name} if tensor.copied else set()
            self.survival += [tensor.survival] if tensor.survival else []


@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_any_writer_gets_what_the_checkpoint_holds(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experts: Any
) -> None:
    stock_adapter(base, tmp_path / "adapter", ["q_proj", "lm_head", "mlp.router.weight", EXPERTS[1]])
    done = export(base, tmp_path / "adapter", tmp_path / "out", experts=experts)
    source, packed = CheckpointReader(base), experts == "mxfp4"
    monkeypatch.setattr("ossia.export.merged._AT_A_TIME", 7 * MICRO.hidden)
    found = Collected(MergedModel(source, read_adapter(tmp_path / "adapter", MICRO), packed))
    assert found.most_rows < MICRO.vocabulary
    assert list(found.tensors) == [spec.name for spec in layout.tensors(MICRO, packed)]
    stored = CheckpointReader(tmp_path / "out")
    for name, tensor in found.tensors.items():
        assert tensor.dtype == stored.get(name).dtype
        assert torch.equal(tensor, stored.get(name)), name
    for survival, told in zip(found.survival, done.report["update"]["tensors"], strict=True):
        # Parts of another size give another order of summation.
        assert survival.name == told.pop("name")
        assert survival.to_json() == pytest.approx(told, rel=1e-5)
    assert len(found.copied) == done.report["verified"]["bytes"]["identical_to_source"]
    assert all(torch.equal(found.tensors[name], source.get(name)) for name in found.copied)
    assert not any(name.endswith(("q_proj.weight", "lm_head.weight")) for name in found.copied)


def test_a_writer_that_rounds_by_itself_gets_the_float32_sums(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter", ["q_proj", EXPERTS[0]])
    source, adapter = CheckpointReader(base), read_adapter(tmp_path / "adapter", MICRO)
    rounded = Collected(MergedModel(source, adapter, packed=False))
    exact = Collected(MergedModel(source, adapter, packed=False, dtype=torch.float32))
    assert exact.copied == rounded.copied
    for name, tensor in exact.tensors.items():
        assert tensor.dtype == (torch.bfloat16 if name in exact.copied else torch.float32)
        assert torch.equal(tensor.to(torch.bfloat16), rounded.tensors[name]), name
    pairs = zip(exact.survival, rounded.survival, strict=True)
    assert all(ours.error < 1e-4 < 1e-3 < theirs.error for ours, theirs in pairs)


def test_an_update_of_zeros_is_none(base: Path, tmp_path: Path) -> None:
    """The source's matrix is copied, and nothing is measured or rounded."""
    stock_adapter(base, tmp_path / "adapter", ["q_proj", "k_proj"])
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    for name, tensor in tensors.items():
        if "q_proj.lora_B" in name:
            tensor.zero_()
    save_file(tensors, tmp_path / "adapter" / WEIGHTS_FILE)
    found = Collected(MergedModel(CheckpointReader(base), read_adapter(tmp_path / "adapter", MICRO), packed=True))
    names = [
        [f"model.layers.{layer}.self_attn.{name}.weight" for layer in range(MICRO.layers)]
        for name in ("q_proj", "k_proj")
    ]
    assert found.copied.issuperset(names[0]) and not found.copied & set(names[1])
    assert [survival.name for survival in found.survival] == names[1]


def test_attention_only_keeps_the_experts_bytes_without_asking(base: Path, tmp_path: Path) -> None:
    tuned = stock_adapter(base, tmp_path / "adapter", ATTENTION)
    done = export(base, tmp_path / "adapter", tmp_path / "out")
    before, after = raw(base), raw(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    assert done.report["experts"]["layout"] == "mxfp4"
    assert done.warnings == []
    merged, ours = tuned.merge_and_unload().state_dict(), float_weights(tmp_path / "out")
    assert all(torch.equal(ours[name], value.bfloat16().float()) for name, value in merged.items())


@pytest.mark.parametrize(
    ("targets", "changed"),
    [
        (["mlp.router.weight"], {"router.weight"}),
        (["embed_tokens"], {"embed_tokens.weight"}),
        (["lm_head"], {"lm_head.weight"}),
        (["mlp.router.weight", "embed_tokens", "lm_head", "q_proj"],
         {"router.weight", "embed_tokens.weight", "lm_head.weight", "q_proj.weight"}),
    ],
    ids=lambda value: "+".join(sorted(value)),
)  # fmt: skip
@pytest.mark.parametrize("at_a_time", [1 << 24, 5 * MICRO.hidden])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_router_embeddings_and_head_are_pefts_merge_rounded_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: list[str], changed: set[str], at_a_time: int
) -> None:
    monkeypatch.setattr("ossia.export.merged._AT_A_TIME", at_a_time)
    tuned = stock_adapter(
        base, tmp_path / "adapter", targets, 2**-4, rank_pattern={"router.weight": 2}, alpha_pattern={}
    )
    said = logits(tuned)
    done = export(base, tmp_path / "adapter", tmp_path / "out")
    before, after = raw(base), raw(tmp_path / "out")
    assert before.keys() == after.keys()
    found = {name for name in before if before[name] != after[name]}
    assert found == {name for name in before if any(name.endswith(f".{end}") or name == end for end in changed)}
    merged, ours = tuned.merge_and_unload().state_dict(), float_weights(tmp_path / "out")
    assert all(torch.equal(ours[name], value.bfloat16().float()) for name, value in merged.items())
    again = logits(load_model(tmp_path / "out", dtype="float32", device="cpu"))
    assert relative(again, logits(stock_model(tmp_path / "out"))) < 1e-5
    unrounded = stock_model(base)
    unrounded.load_state_dict(merged)
    assert relative(logits(unrounded), said) < 1e-5
    # Rounding to bfloat16 may send a token to other experts.
    assert relative(again, said) < 0.05 < 0.1 < relative(logits(stock_model(base)), said)
    compared = done.report["verified"]["logits"]
    assert compared["mean_kl"] < 0.05 * compared["effect_kl"]
    assert done.warnings == []
    parts = {part for part in rounding.PARTS if done.report["update"][part]["rho"] > 0}
    assert len(parts) == len(changed)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapter_with_other_embeddings_in_it_is_refused(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter", ["embed_tokens"])
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"][3, 3] += 1
    save_file(tensors, tmp_path / "adapter" / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"embed_tokens\.weight that is not this base model's"):
        export(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_ossia_trains_is_merged_as_it_spoke(base: Path, tmp_path: Path) -> None:
    """Ossia wrote the adapter, and it has all targets."""
    (tmp_path / "adapter").mkdir()
    tuned = adapted(base, TARGETS)
    lora.save_adapter(tuned, tmp_path / "adapter")
    export(base, tmp_path / "adapter", tmp_path / "out", experts="bf16")
    said, before = logits(tuned.eval()), logits(load_model(base, dtype="float32", device="cpu"))
    merged = logits(load_model(tmp_path / "out", dtype="float32", device="cpu"))
    assert relative(merged, said) < 0.03 < 0.3 < relative(before, said)


def test_experts_that_never_trained_keep_their_bytes(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter", EXPERTS)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    for name, tensor in tensors.items():
        if "lora_B" in name:  # [out, R * E], ranks first: every E-th column belongs to expert 3
            tensor[:, 3 :: MICRO.experts] = 0
    save_file(tensors, tmp_path / "adapter" / WEIGHTS_FILE)
    export(base, tmp_path / "adapter", tmp_path / "out", experts="mxfp4")
    before, after = CheckpointReader(base), CheckpointReader(tmp_path / "out")
    for name in before.names():
        if name.endswith(("_blocks", "_scales")):
            assert torch.equal(before.get(name)[3], after.get(name)[3]), name
        if name.endswith("_blocks"):
            assert not torch.equal(before.get(name)[2], after.get(name)[2]), name


@pytest.mark.parametrize("step", [LARGE, SMALL, 2**-5])
def test_the_report_equals_an_independent_computation(base: Path, tmp_path: Path, step: float) -> None:
    """The computation is in float64, with PEFT's update and transformers' dequantised values."""
    tuned = stock_adapter(base, tmp_path / "adapter", [*ATTENTION, *EXPERTS], step)
    done = export(base, tmp_path / "adapter", tmp_path / "out", experts="mxfp4")
    before, after = float_weights(base), float_weights(tmp_path / "out")
    merged = {name: value.double() for name, value in tuned.merge_and_unload().state_dict().items()}
    tensors = done.report["update"]["tensors"]
    assert len(tensors) == 2 * 6
    for found in tensors:
        w, q = before[found["name"]].double(), after[found["name"]].double()
        update = merged[found["name"]] - w
        assert found["rho"] == pytest.approx(float(update.norm() / w.norm()), rel=1e-4)
        assert found["keep"] == pytest.approx(
            float(((q - w) * update).sum() / update.square().sum()), rel=1e-3, abs=1e-4
        )
        assert found["error"] == pytest.approx(float((q - w - update).norm() / update.norm()), rel=1e-3)
        assert found["changed"] == pytest.approx(float((q != w).double().mean()), abs=1e-9)


def test_a_small_update_is_not_erased_silently(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter", EXPERTS, SMALL)
    asked = export(base, tmp_path / "adapter", tmp_path / "mxfp4", experts="mxfp4")
    assert asked.report["update"]["experts"]["keep"] < 0.05
    assert any("rounding to mxfp4 damages the experts" in warning for warning in asked.warnings)
    assert json.loads((tmp_path / "mxfp4" / "report.json").read_text())["warnings"] == asked.warnings
    automatic = export(base, tmp_path / "adapter", tmp_path / "auto")
    assert automatic.report["experts"]["layout"] == "bf16"
    assert "would lose" in automatic.report["experts"]["reason"]
    assert automatic.report["update"]["experts"]["keep"] == pytest.approx(1, abs=0.2)
    assert automatic.warnings == []


def test_an_update_below_bf16s_resolution_is_reported_too(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter", ATTENTION, 2**-11)
    done = export(base, tmp_path / "adapter", tmp_path / "out")
    assert done.report["update"]["attention"]["keep"] < 0.5
    assert any("rounding to bf16 damages the attention" in warning for warning in done.warnings)


def test_a_large_update_stays_in_four_bits(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter", EXPERTS, LARGE)
    done = export(base, tmp_path / "adapter", tmp_path / "out")
    assert done.report["experts"]["layout"] == "mxfp4"
    assert rounding.KEEP_BETWEEN[0] < done.report["update"]["experts"]["keep"] < rounding.KEEP_BETWEEN[1]
    assert done.report["update"]["experts"]["error"] < rounding.MOST_ERROR


def test_a_sample_that_was_too_kind_is_overruled(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The automatic choice measures some experts first. If all experts then miss the bounds, the export restarts."""
    stock_adapter(base, tmp_path / "adapter", EXPERTS, SMALL)
    monkeypatch.setattr(rounding, "sample", lambda *_, **__: [])
    done = export(base, tmp_path / "adapter", tmp_path / "out")
    assert done.report["experts"]["layout"] == "bf16"
    assert not CheckpointReader(tmp_path / "out").is_mxfp4


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # PEFT overlooks target_parameters here
def test_a_bf16_export_is_a_base_again(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter")
    export(base, tmp_path / "adapter", tmp_path / "once", experts="bf16")
    done = export(tmp_path / "once", tmp_path / "adapter", tmp_path / "twice")
    assert done.report["experts"] == {"asked": "auto", "layout": "bf16", "reason": "as in the base model"}
    weights, once = float_weights(base), float_weights(tmp_path / "once")
    name = "model.layers.1.mlp.experts.down_proj"
    twice = float_weights(tmp_path / "twice")[name]
    torch.testing.assert_close(twice - once[name], once[name] - weights[name], rtol=0.05, atol=0.02)
    assert "skipped" not in done.report["verified"]["logits"]
    with pytest.raises(UserError, match="not in four bits"):
        export(tmp_path / "once", tmp_path / "adapter", tmp_path / "thrice", experts="mxfp4")


def test_config_is_written_in_both_spellings_and_keeps_the_rest(base: Path, tmp_path: Path) -> None:
    """transformers 5 rewrote the config of the base. The export adds the keys of older readers again."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in base.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    for key in ("rope_theta", "rope_scaling", "torch_dtype", "experts_per_token"):
        del config[key]
    (copy / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "custom": 7}))
    stock_adapter(base, tmp_path / "adapter", ATTENTION)
    export(copy, tmp_path / "adapter", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == layout.config_json(MICRO) | {"custom": 7}
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()


def test_bytes_that_changed_on_disk_are_noticed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock_adapter(base, tmp_path / "adapter", ATTENTION)
    check = verify.check_bytes

    def flip_a_bit_first(folder: Path, *arguments: Any, **settings: Any) -> Any:
        stored = CheckpointReader(folder).stored["model.layers.0.mlp.experts.down_proj_blocks"]
        with stored.file.open("r+b") as stream:
            stream.seek(stored.start + 5)
            byte = stream.read(1)[0]
            stream.seek(stored.start + 5)
            stream.write(bytes([byte ^ 1]))
        return check(folder, *arguments, **settings)

    monkeypatch.setattr(verify, "check_bytes", flip_a_bit_first)
    with pytest.raises(OssiaError, match="does not read back"):
        export(base, tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merged_model_that_speaks_otherwise_is_reported(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison of logits detects a wrong merge. Here, every update has the opposite sign."""
    stock_adapter(base, tmp_path / "adapter", ATTENTION, 2**-3)
    matrix = LoraDelta.matrix
    monkeypatch.setattr(LoraDelta, "matrix", lambda *arguments, **settings: -matrix(*arguments, **settings))
    done = export(base, tmp_path / "adapter", tmp_path / "out")
    assert any("differs from the tuned one" in warning for warning in done.warnings)


def test_logits_are_not_compared_beyond_the_memory(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ossia import hardware

    stock_adapter(base, tmp_path / "adapter", ATTENTION)
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Answer(10**5, "a very small machine"))
    done = export(base, tmp_path / "adapter", tmp_path / "out")
    assert "GB" in done.report["verified"]["logits"]["skipped"]


def test_padding_does_not_change_the_compared_distributions(base: Path) -> None:
    model = load_model(base, dtype="float32", device="cpu")
    prompts = [PROMPT[0, :9], PROMPT[0, 5:40]]
    together = verify._log_probabilities(model, prompts, "cpu")
    apart = torch.cat([verify._log_probabilities(model, [ids], "cpu") for ids in prompts])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_progress_adds_up_to_the_bytes_of_the_model(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter", ATTENTION)
    told: dict[str, list[int]] = {}

    @contextmanager
    def show(title: str, total: int) -> Any:
        told[title] = [total, 0]

        def advance(units: int) -> None:
            told[title][1] += units

        yield advance

    progress: ProgressFactory = show
    assert isinstance(show("", 0), AbstractContextManager)
    told.clear()
    export(base, tmp_path / "adapter", tmp_path / "out", progress=progress)
    assert {total for total, _ in told.values()} == {layout.bytes_of(MICRO)}
    assert all(done == total for total, done in told.values())
