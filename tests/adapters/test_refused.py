"""Tests of refused adapters: the message names the problem and is the same for all readers of adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ossia.adapters import apply as lora
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.export import job
from ossia.export.source import find_source
from ossia.plan import Examples, Machine, estimate, find_model
from support.export_samples import ATTENTION, EXPERTS, make_base, stock_adapter
from support.lora_samples import base_model

LAYER = "base_model.model.model.layers."
EXTRA = torch.ones(4, 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    stock_adapter(base, folder)
    return folder


@pytest.fixture(scope="module")
def refusal(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """A function that returns the message of refusal of an adapter.

    The message is the same for loading it onto a model, continuing a run, planning and exporting.
    """
    model, adapted = base_model(base), lora.attach_adapter(base_model(base))
    before = [parameter.clone() for parameter in adapted.parameters()]
    out = tmp_path_factory.mktemp("exports") / "out"

    def said(folder: Path) -> str:
        users: list[Callable[[], Any]] = [
            lambda: lora.load_adapter(model, folder, trainable=True),
            lambda: lora.load_adapter_weights(adapted, folder),
            lambda: plan(base, folder),
            lambda: job.write_export(find_source(str(folder / "."), str(base)), "adapter", out),
        ]
        # Without adapter_config.json, `export` does not treat a folder as an adapter and looks for a run of that name.
        message = said_by(users if (folder / CONFIG_FILE).is_file() else users[:-1])
        assert not hasattr(model, "peft_config") and not out.exists()
        assert all(torch.equal(*pair) for pair in zip(before, adapted.parameters(), strict=True))
        return message

    return said


def said_by(users: Iterable[Callable[[], Any]]) -> str:
    """Return the message of refusal, which must be the same for all users."""
    messages = set()
    for use in users:
        with pytest.raises(UserError) as error:
            use()
        messages.add(str(error.value))
    assert len(messages) == 1, messages
    return messages.pop()


def plan(base: Path, adapter: Path) -> Any:
    recipe = Recipe.model_validate({"model": {"path": str(base)}, "lora": {"start_from": str(adapter)}})
    return estimate(recipe, find_model(str(base)), Examples.assumed(recipe), Machine.here(recipe.model))


def edit(folder: Path, target: Path, config: Mapping[str, Any] | None = None, drop: str = "", **tensors: Any) -> Path:
    """Copy an adapter with another configuration, without the tensors whose names contain `drop`, with new tensors."""
    target.mkdir()
    values = json.loads((folder / CONFIG_FILE).read_text()) | (config or {})
    (target / CONFIG_FILE).write_text(json.dumps(values))
    kept = {name: tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items() if not drop or drop not in name}
    save_file(kept | {name: tensor.clone() for name, tensor in tensors.items()}, target / WEIGHTS_FILE)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "of type IA3, not LORA"),
        ({"target_modules": ["q_proj", "mlp"]}, r"changes model\.layers\.0\.mlp, model\.layers\.1\.mlp"),
        ({"target_modules": r".*\.(q_proj|mlp)"}, r"changes model\.layers\.0\.mlp, model\.layers\.1\.mlp,"),
        ({"target_parameters": ["mlp.experts.gate_up_proj_bias"]}, "gate_up_proj_bias"),
        ({"target_parameters": ["input_layernorm.weight"]}, "input_layernorm"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"of_the_next_peft": {"on": True}}, "of_the_next_peft"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "of the next PEFT"}, "of the next PEFT"),
        ({"init_lora_weights": None}, "initialised by None"),
        ({"target_modules": "nothing", "target_parameters": None}, "does not name"),
        ({"target_modules": [*ATTENTION, "9.self_attn.q_proj"], "target_parameters": ["9." + EXPERTS[0]]}, "not name"),
        ({"target_modules": ["q_proj"]}, r"does not name: .*k_proj\.lora_A"),
        ({"target_parameters": EXPERTS[:1]}, r"does not name: .*experts\.base_layer\.lora_A"),
        ({"target_modules": [*ATTENTION, "lm_head"]}, r"no tensor .*lm_head\.lora_A"),
        ({"target_parameters": [*EXPERTS, "router.weight"]}, r"no tensor .*router\.lora_A"),
        ({"rank_pattern": {"k_proj": 3, "gate_up_proj": 2, "down_proj": 2}}, r"k_proj has lora_A .* not fit rank 3"),
        ({"rank_pattern": {"gate_up_proj": 4, "down_proj": 2}}, r"0\.mlp\.experts\.gate_up_proj has lora_A"),
        ({"r": 5}, r"q_proj has lora_A \[4, 64\] and lora_B \[128, 4\], which do not fit rank 5 and \[128, 64\]"),
        ({"r": "4"}, "'4' is not a rank"),
        ({"r": 0}, "0 is not a rank"),
        ({"rank_pattern": {"q_proj": True}}, "True is not a rank"),
        ({"lora_alpha": float("nan")}, "nan is not an alpha"),
        ({"lora_alpha": None}, "None is not an alpha"),
        ({"alpha_pattern": {"q_proj": "8"}}, "'8' is not an alpha"),
        ({"rank_pattern": {"(": 3}}, r"'\(' is not a regular expression"),
        ({"target_modules": "("}, r"'\(' is not a regular expression"),
        ({"target_modules": [7]}, "not an adapter in PEFT's layout"),
        ({"rank_pattern": [1]}, "not an adapter in PEFT's layout"),
    ],
    ids=str,
)
def test_configurations(
    good: Path, tmp_path: Path, refusal: Callable[[Path], str], change: dict[str, Any], message: str
) -> None:
    assert re.search(message, refusal(edit(good, tmp_path / "bad", change)))


@pytest.mark.parametrize(
    ("message", "drop", "tensors"),
    [
        ("lm_head.bias", "", {"base_model.model.lm_head.bias": EXTRA}),
        ("layers.9.self_attn.q_proj", "", {f"{LAYER}9.self_attn.q_proj.lora_{side}.weight": EXTRA for side in "AB"}),
        ("mlp.router.lora_A", "", {f"{LAYER}0.mlp.router.lora_{side}.weight": EXTRA for side in "AB"}),
        ("mlp.experts.gate_up_proj", "", {f"{LAYER}0.mlp.experts.gate_up_proj.lora_A.weight": EXTRA}),
        ("model.norm", "", {f"base_model.model.model.norm.lora_{side}.weight": EXTRA for side in "AB"}),
        ("lm_head.lora_embedding_A", "", {"base_model.model.lm_head.lora_embedding_A": EXTRA}),
        ("embed_tokens.lora_A", "", {"base_model.model.model.embed_tokens.lora_A.weight": EXTRA}),
        ("q_proj.lora_A.default", "", {f"{LAYER}0.self_attn.q_proj.lora_A.default.weight": EXTRA}),
        ("not_of_peft", "", {"not_of_peft": EXTRA}),
        ("0.self_attn.q_proj has lora_A [4, 4]", "", {f"{LAYER}0.self_attn.q_proj.lora_A.weight": EXTRA}),
        ("0.self_attn.q_proj has lora_A [64]", "", {f"{LAYER}0.self_attn.q_proj.lora_A.weight": EXTRA[0].repeat(16)}),
        ("1.mlp.experts.down_proj has lora_A", "", {f"{LAYER}1.mlp.experts.lora_B.weight": EXTRA}),
        ("no tensor base_model.model.model.layers.1.self_attn.v_proj.lora_B", "1.self_attn.v_proj.lora_B", {}),
        ("no tensor base_model.model.model.layers.1.mlp.experts.base_layer.lora_A", "1.mlp.experts.base_layer", {}),
        ("no tensor", "lora", {}),
    ],
    ids=str,
)
def test_tensors(
    good: Path, tmp_path: Path, refusal: Callable[[Path], str], message: str, drop: str, tensors: dict[str, Any]
) -> None:
    said = refusal(edit(good, tmp_path / "bad", drop=drop, **tensors))
    assert message in said
    assert str(tmp_path / "bad" / WEIGHTS_FILE) in said
    assert "another base model" in said and "--model" in said


def test_one_convention_for_all_layers(good: Path, tmp_path: Path, refusal: Callable[[Path], str]) -> None:
    turned = {}
    for name, tensor in load_file(good / WEIGHTS_FILE).items():
        if "layers.1.mlp.experts.lora_" in name:
            size = 64 if "lora_A" in name else 96
            turned[name] = torch.ones(len(tensor), size) if "lora_A" in name else torch.ones(size, tensor.shape[1])
    assert len(turned) == 2
    assert "1.mlp.experts.down_proj has lora_A" in refusal(edit(good, tmp_path / "bad", **turned))


@pytest.mark.parametrize("change", [{"peft_type": None}, {"r": None}, {"lora_alpha": None}], ids=str)
def test_missing_keys(good: Path, tmp_path: Path, refusal: Callable[[Path], str], change: dict[str, None]) -> None:
    folder = edit(good, tmp_path / "bad")
    config = json.loads((folder / CONFIG_FILE).read_text())
    (name,) = change
    del config[name]
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    assert f"'{name}'" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (CONFIG_FILE, b"[]", "not an adapter"),
        (CONFIG_FILE, b'{"peft_type": ', "not an adapter"),
        (CONFIG_FILE, b"\xff\xfe", "not an adapter"),
        (CONFIG_FILE, None, "not an adapter"),
        (WEIGHTS_FILE, None, "cannot be read"),
        (WEIGHTS_FILE, b"", "cannot be read"),
        (WEIGHTS_FILE, b"\x10", "cannot be read"),
        (WEIGHTS_FILE, b"\x10\0\0\0\0\0\0\0{", "cannot be read"),
        (WEIGHTS_FILE, slice(0, -1), "cannot be read"),
        (WEIGHTS_FILE, b"more", "cannot be read"),
    ],
    ids=str,
)
def test_damaged_files(
    good: Path, tmp_path: Path, refusal: Callable[[Path], str], file: str, content: Any, message: str
) -> None:
    path = edit(good, tmp_path / "bad") / file
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    elif isinstance(content, slice):
        path.write_bytes(whole[content])
    else:
        path.write_bytes(whole + content if content == b"more" else content)
    said = refusal(path.parent)
    assert message in said and str(path) in said


@pytest.mark.parametrize(
    ("change", "targets"),
    [
        ({"hidden": 96}, ATTENTION),
        ({"hidden": 96}, EXPERTS),
        ({"intermediate": 160}, EXPERTS),
        ({"experts": 6}, EXPERTS),
        ({"experts": 6}, ["mlp.router.weight"]),
        ({"vocabulary": 600}, ["lm_head"]),
        ({"vocabulary": 600}, ["embed_tokens"]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_adapters_of_another_model(
    tmp_path: Path, refusal: Callable[[Path], str], change: dict[str, int], targets: list[str]
) -> None:
    other = write_tiny(tmp_path / "other", MICRO.replace(**change))
    stock_adapter(other, tmp_path / "adapter", targets)
    said = refusal(tmp_path / "adapter")
    assert "do not fit" in said and "another base model" in said


def test_experts_whose_convention_cannot_be_told(tmp_path: Path) -> None:
    """The only matrix is square. PEFT's conventions differ by a transpose, so both give the same shapes."""
    square = write_tiny(tmp_path / "square", MICRO.replace(intermediate=MICRO.hidden))
    folder = tmp_path / "adapter"
    stock_adapter(square, folder, ["q_proj", EXPERTS[1]])
    said = said_by(
        [
            lambda: lora.load_adapter(base_model(square), folder),
            lambda: lora.load_adapter_weights(lora.attach_adapter(base_model(square)), folder),
            lambda: plan(square, folder),
            lambda: job.write_export(find_source(str(folder), str(square)), "hf", tmp_path / "out"),
        ]
    )
    assert "do not determine how to read the experts' update" in said
    assert "changes only down_proj" in said


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_copies_of_another_base(base: Path, tmp_path: Path) -> None:
    """Stock PEFT writes the embeddings beside a LoRA on them, and loads them in place of the base's."""
    stock_adapter(base, tmp_path / "good", ["embed_tokens", "lm_head"], rank_pattern={}, alpha_pattern={})
    tensors = load_file(tmp_path / "good" / WEIGHTS_FILE)
    adapted = lora.load_adapter(base_model(base), tmp_path / "good")
    for number, (name, change) in enumerate((("lm_head", 1.0), ("model.embed_tokens", 1.0), ("lm_head", 2**-20))):
        key = f"base_model.model.{name}.base_layer.weight"
        changed = tensors[key].clone()
        changed[5, 5] += change
        folder = edit(tmp_path / "good", tmp_path / str(number), **{key: changed})
        users: list[Callable[[], Any]] = [
            partial(lora.load_adapter, base_model(base), folder),
            partial(lora.load_adapter_weights, adapted, folder),
            partial(job.write_export, find_source(str(folder), str(base)), "hf", tmp_path / "out"),
        ]
        assert f"{name}.weight that is not this base model's" in said_by(users)
    assert not (tmp_path / "out").exists()


def test_a_run_continues_with_its_own_adapter_only(good: Path, base: Path, tmp_path: Path) -> None:
    """The refused adapters fit the model, but their settings differ from those of the adapter on it."""
    adapted = lora.load_adapter(base_model(base), good)
    lora.load_adapter_weights(adapted, good)
    lora.load_adapter_weights(adapted, edit(good, tmp_path / "moved", {"base_model_name_or_path": "elsewhere"}))
    for number, change in enumerate(({"lora_alpha": 9}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 9}})):
        with pytest.raises(UserError, match="other targets, ranks or scales"):
            lora.load_adapter_weights(adapted, edit(good, tmp_path / str(number), change))
