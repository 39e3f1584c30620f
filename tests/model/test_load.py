"""Tests of loading: both layouts give the same memory-mapped model, and every fault of a file is named."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ossia
from ossia.checkpoint import hub, layout, original
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.locate import locate
from ossia.checkpoint.locate import tokenizer_folder as locate_tokenizer
from ossia.checkpoint.reader import CheckpointReader, copy_side_files
from ossia.checkpoint.tiny import MICRO, TINY, write_tiny
from ossia.errors import UserError
from ossia.model.load import load_model, placed
from support.original_samples import CONFIG_20B, names, write_original, write_repository


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("published") / "micro", MICRO, seed=5)


@pytest.fixture(scope="module", params=[1, 3], ids=["one file", "three files"])
def theirs(published: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return write_original(published, tmp_path_factory.mktemp("original") / "original", files=request.param)


# The reference's layout


def test_the_name_map_is_that_of_a_table_made_by_hand() -> None:
    assert {name: list(parts) for name, parts in layout.original_names(MICRO).items()} == names(MICRO.layers)


def test_the_published_original_config_is_the_20b() -> None:
    assert original.is_config(CONFIG_20B)
    assert original.shape_from_config(CONFIG_20B, "config.json") == Shape.GPT_OSS_20B
    assert layout.original_config_json(Shape.GPT_OSS_20B) == CONFIG_20B
    assert not original.is_config(layout.config_json(Shape.GPT_OSS_20B))
    with pytest.raises(UserError, match=r"c\.json: the key 'rope_theta' is missing"):
        original.shape_from_config({key: value for key, value in CONFIG_20B.items() if key != "rope_theta"}, "c.json")


def test_both_layouts_give_the_same_model_bit_for_bit(published: Path, theirs: Path) -> None:
    ours, other = (load_model(folder, dtype="bfloat16", device="cpu") for folder in (published, theirs))
    state = ours.state_dict()
    assert list(other.state_dict()) == list(state)
    for name, tensor in other.state_dict().items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name]), name
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, other(input_ids=ids).logits)
    assert torch.equal(ours.model.rotary_emb.inv_freq, other.model.rotary_emb.inv_freq)
    assert ours.generation_config.eos_token_id == other.generation_config.eos_token_id
    assert CheckpointReader(theirs).config() == CheckpointReader(published).config()


def test_the_fused_projections_are_taken_apart_without_a_copy(theirs: Path) -> None:
    attention = load_model(theirs, dtype="bfloat16", device="cpu").model.layers[0].self_attn
    parts = [projection.weight for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    assert parts[1].data_ptr() == parts[0].data_ptr() + parts[0].nbytes
    assert parts[2].data_ptr() == parts[1].data_ptr() + parts[1].nbytes
    assert all(part.is_contiguous() for part in parts)


def test_a_repository_with_only_the_original_folder(published: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny", TINY, tokenizer_folder=tokenizer_folder)
    repository = write_repository(tiny, tmp_path / "repository")
    assert locate(repository) == repository / "original"
    model, tokenizer = ossia.load(repository, dtype="float32", device="cpu")
    assert model.config.num_hidden_layers == TINY.layers
    assert tokenizer.encode("hello world") == [24912, 2375]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith("<|start|>")
    assert "tokenizer.json" in copy_side_files(repository / "original", tmp_path / "copy")
    # Weights beside the configuration, as in a complete download, have precedence.
    for file in tiny.glob("*.json"):
        shutil.copyfile(file, repository / file.name)
    assert locate(repository) == repository / "original"
    shutil.copyfile(tiny / "model.safetensors", repository / "model.safetensors")
    assert locate(repository) == repository


def test_the_tokenizer_of_a_checkpoint_without_one(
    published: Path, tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = write_tiny(tmp_path / "tiny", TINY, tokenizer_folder=tmp_path)  # an empty folder: no files to copy
    alone = write_original(tiny, tmp_path / "weights")
    _, tokenizer = ossia.load(alone, dtype="float32", device="cpu")
    assert tokenizer.encode("hello world") == [24912, 2375]
    assert tokenizer.chat_template
    with pytest.raises(UserError, match=r"no tokenizer\.json, and its vocabulary is not the published one"):
        ossia.load(write_original(published, tmp_path / "micro"))


def test_a_tokenizer_that_transformers_cannot_read(published: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    (broken / "tokenizer.json").write_text("{}")
    assert locate_tokenizer(broken) == broken
    with pytest.raises(UserError, match=r"transformers cannot read the tokenizer \(KeyError"):
        ossia.load(broken)


# Damage, in both layouts


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    held = load_file(file)
    change(held)
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, file)


def with_nan(held: dict[str, Tensor], name: str) -> None:
    held[name][1, 2, 1] = 255


DAMAGE = [
    # the change, the tensor's name in the published layout and in the reference's layout, and the message
    (lambda held, name: held.pop(name), "model.layers.1.self_attn.sinks", "block.1.attn.sinks", "missing, such as {}"),
    (
        lambda held, name: held.update({name: held[name].float()}),
        "model.norm.weight", "norm.scale", r"{} is F32 \[64\] in model\.safetensors, not BF16 \[64\]",
    ),
    (
        lambda held, name: held.update({name: held[name][:-1]}),
        "model.layers.0.self_attn.o_proj.weight", "block.0.attn.out.weight", r"{} is BF16 \[63, 128\] in .*, not BF16",
    ),
    (
        lambda held, name: held.update({name: held[name][:-16]}),
        "model.layers.0.self_attn.k_proj.bias", "block.0.attn.qkv.bias", r"{} is BF16 \[\d+\] in .*, not BF16 \[\d+\]",
    ),
    (
        with_nan, "model.layers.1.mlp.experts.down_proj_scales", "block.1.mlp.mlp2_weight.scales",
        r"model\.safetensors: model\.layers\.1\.mlp\.experts\.down_proj_scales: 1 of 1536 MXFP4 scales are NaN",
    ),
    (
        lambda held, name: held.update({"more": torch.zeros(1)}), "more", "more", "1 unexpected, such as {}",
    ),
]  # fmt: skip


@pytest.mark.parametrize("reference", [False, True], ids=["published", "reference"])
@pytest.mark.parametrize(("change", "ours", "other", "message"), DAMAGE)
def test_what_is_wrong_with_a_tensor_is_named(
    published: Path, tmp_path: Path, reference: bool, change: Any, ours: str, other: str, message: str
) -> None:
    folder = tmp_path / "model"
    if reference:
        write_original(published, folder)
    else:
        shutil.copytree(published, folder)
    name = other if reference else ours
    rewritten(folder, lambda held: change(held, name))
    with pytest.raises(UserError, match=message.format(name.replace(".", r"\."))):
        load_model(folder, dtype="float32", device="cpu")


def test_a_file_that_is_cut_off_or_gone_is_named(published: Path, tmp_path: Path) -> None:
    folder = write_original(published, tmp_path / "cut", files=3)
    file = folder / "model--00002-of-00003.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"model--00002-of-00003\.safetensors: the file is cut off"):
        load_model(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"\d+ missing, such as "):
        load_model(folder)
    for rest in folder.glob("*.safetensors"):
        rest.unlink()
    with pytest.raises(UserError, match="no checkpoint here"):
        load_model(folder)


def test_reference_weights_under_a_wrong_config(published: Path, tmp_path: Path) -> None:
    folder = write_original(published, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    with pytest.raises(UserError, match=r"block\.0\.attn\.qkv\.weight is BF16 \[192, 64\] in .*, not BF16 \[256, 64\]"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        CheckpointReader(folder)


# Memory


def test_on_a_cpu_nothing_is_copied(published: Path) -> None:
    """The parameters stay in the mapped file, unless their dtype changes."""
    model = load_model(published, dtype="bfloat16", device="cpu")
    sizes = {parameter.untyped_storage().nbytes() for parameter in model.parameters()}
    assert sizes == {(published / "model.safetensors").stat().st_size}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_to_a_device_tensors_go_one_at_a_time(
    published: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU. At any time, at most one tensor is in main memory."""
    reader = CheckpointReader(published)
    alive: list[weakref.ref[Tensor]] = []
    most, get = 0, reader.get

    def counting(name: str) -> Tensor:
        nonlocal most
        tensor = get(name)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(held() is not None for held in alive))
        return tensor

    monkeypatch.setattr(reader, "get", counting)
    tensors = placed(reader, "meta", dtype)
    assert most == 1
    assert len(alive) == len(tensors) == len(list(layout.tensors(MICRO)))
    for spec in layout.tensors(MICRO):
        assert tensors[spec.name].device.type == "meta"
        assert tensors[spec.name].dtype == (torch.uint8 if spec.dtype == "U8" else dtype)
    gc.collect()
    assert not any(held() is not None for held in alive)


# By hub id


def test_a_fetched_hub_id_loads(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "models_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="ossia fetch openai/gpt-oss-20b"):
        ossia.load("openai/gpt-oss-20b")
    write_tiny(tmp_path / "openai--gpt-oss-20b", TINY, tokenizer_folder=tokenizer_folder)
    for name in ("openai/gpt-oss-20b", "gpt-oss-20b"):
        model, tokenizer = ossia.load(name, dtype="float32", device="cpu")
        assert model.config.num_hidden_layers == TINY.layers
        assert len(tokenizer.encode("hello world")) == 2


# Saving


def test_saving_converts_nothing(published: Path, theirs: Path, tmp_path: Path) -> None:
    """The save_pretrained of transformers writes the published names with the published bytes."""
    load_model(theirs, dtype="bfloat16", device="cpu").save_pretrained(tmp_path / "saved")
    before, after = CheckpointReader(published), CheckpointReader(tmp_path / "saved")
    after.check()
    assert set(after.names()) == set(before.names())
    for name in before.names():
        assert torch.equal(after.get(name), before.get(name)), name
