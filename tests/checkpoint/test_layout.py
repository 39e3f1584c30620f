"""Tests of the layout's totals (against published figures), of its config (against transformers) and of its files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia.checkpoint import layout
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.reader import INDEX, CheckpointReader, copy_side_files
from ossia.checkpoint.tiny import MICRO, TINY, write_tiny
from ossia.checkpoint.writer import CheckpointWriter
from ossia.errors import DoesNotFitError, UserError

PUBLISHED = [
    # shape, parameters and bytes in units of the model card, tensors in the published index
    (Shape.GPT_OSS_20B, 20.91e9, 13.761e9, 459),
    (Shape.GPT_OSS_120B, 116.83e9, 65.249e9, 687),
]
# openai/gpt-oss-120b's config.json, less transformers_version
PUBLISHED_KEYS = {
    *("architectures", "attention_bias", "attention_dropout", "eos_token_id", "experts_per_token", "head_dim"),
    *("hidden_act", "hidden_size", "initial_context_length", "initializer_range", "intermediate_size", "layer_types"),
    *("max_position_embeddings", "model_type", "num_attention_heads", "num_experts_per_tok", "num_hidden_layers"),
    *("num_key_value_heads", "num_local_experts", "output_router_logits", "pad_token_id", "quantization_config"),
    *("rms_norm_eps", "rope_scaling", "rope_theta", "router_aux_loss_coef", "sliding_window", "swiglu_limit"),
    *("tie_word_embeddings", "use_cache", "vocab_size"),
}


@pytest.mark.parametrize(("shape", "parameters", "size", "count"), PUBLISHED)
def test_totals_are_the_published_ones(shape: Shape, parameters: float, size: float, count: int) -> None:
    assert layout.parameters_of(shape) == pytest.approx(parameters, rel=5e-4)
    assert layout.bytes_of(shape) == pytest.approx(size, rel=5e-5)
    assert len(list(layout.tensors(shape))) == count
    packed = layout.parameters_of(shape, "blocks")
    assert layout.bytes_of(shape, "blocks", "scales") == packed * 17 // 32  # 4.25 bits a weight
    assert layout.bytes_of(shape, mxfp4=False) == 2 * layout.parameters_of(shape)


@pytest.mark.parametrize("shape", [MICRO, TINY])
def test_names_and_shapes_are_those_of_transformers(shape: Shape) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    with torch.device("meta"):
        model = GptOssForCausalLM(GptOssConfig(**layout.config_json(shape, mxfp4=False)))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert theirs == {spec.name: spec.shape for spec in layout.tensors(shape, mxfp4=False)}


def test_both_rope_spellings_mean_the_same_to_transformers() -> None:
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    config = layout.config_json(Shape.GPT_OSS_20B)
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    new = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    frequencies = []
    for spelling in (config, old, new):
        read = GptOssConfig(**spelling)
        assert read.rope_parameters["rope_theta"] == 150_000.0
        assert read.rope_parameters["truncate"] is False
        frequencies.append(GptOssRotaryEmbedding(read).inv_freq)
        assert Shape.from_config(spelling) == Shape.GPT_OSS_20B
    silent = GptOssConfig(rope_scaling={"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096})
    rounds = not torch.equal(GptOssRotaryEmbedding(silent).inv_freq, frequencies[0])
    assert Shape.from_config(silent.to_dict()).rope_truncate is rounds is True
    assert torch.equal(frequencies[0], frequencies[1])
    assert torch.equal(frequencies[0], frequencies[2])


def test_config_has_every_key_of_the_published_one() -> None:
    config = layout.config_json(Shape.GPT_OSS_120B)
    assert config.keys() >= PUBLISHED_KEYS
    assert (config["eos_token_id"], config["pad_token_id"]) == (200_002, 199_999)
    assert config["layer_types"][:3] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("shape", [MICRO, TINY, Shape.GPT_OSS_120B])
def test_config_as_transformers_rewrites_it_reads_back(shape: Shape) -> None:
    from transformers import GptOssConfig

    assert Shape.from_config(GptOssConfig(**layout.config_json(shape)).to_dict()) == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3"}, "a qwen3 model, not gpt-oss"),
        ({"tie_word_embeddings": True}, "a separate head"),
        ({"num_local_experts": None}, "'num_local_experts' is missing"),
        ({"layer_types": ["full_attention"] * 24}, "do not alternate"),
        ({"hidden_size": 2881}, "not a multiple of 32"),
        ({"num_key_value_heads": 7}, "cannot share 7"),
        ({"num_experts_per_tok": 99}, "impossible"),
    ],
)
def test_other_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Shape.from_config(layout.config_json(Shape.GPT_OSS_20B) | change)


def test_original_layout_holds_every_tensor_once() -> None:
    names = layout.original_names(MICRO)
    held = Counter(name for sources in names.values() for name in sources)
    assert held == Counter(spec.name for spec in layout.tensors(MICRO))
    assert names["block.1.attn.qkv.bias"] == tuple(f"model.layers.1.self_attn.{part}_proj.bias" for part in "qkv")
    assert names["block.0.mlp.mlp2_weight.scales"] == ("model.layers.0.mlp.experts.down_proj_scales",)
    assert layout.original_config_json(Shape.GPT_OSS_20B)["num_experts"] == 32


@pytest.fixture
def micro(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "micro", MICRO, max_shard_bytes=100_000)


def test_written_files_are_what_safetensors_reads(micro: Path) -> None:
    from safetensors import safe_open

    reader = CheckpointReader(micro)
    reader.check()
    index = json.loads((micro / INDEX).read_text())
    assert index["metadata"]["total_size"] == layout.bytes_of(MICRO) == reader.bytes
    files = sorted(file.name for file in micro.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) > 1
    for name, file in index["weight_map"].items():
        with safe_open(micro / file, framework="pt") as stored:
            assert stored.metadata() == {"format": "pt"}
            theirs = stored.get_tensor(name)
        ours = reader.get(name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert not (micro / ".partial").exists()


def test_files_that_safetensors_wrote_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    stored = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.randn(5).bfloat16(), "c": torch.randn(2, 0)}
    save_file(stored, tmp_path / "model.safetensors")
    reader = CheckpointReader(tmp_path)
    assert sorted(reader.names()) == ["a", "b", "c"]
    for name, tensor in stored.items():
        assert torch.equal(reader.get(name), tensor)


def test_tensors_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    tensor = torch.randn(3, 2).bfloat16()
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [1, 13]},
        }
    ).encode()
    data = b"\x07" + tensor.view(torch.uint8).numpy().tobytes()
    for padding in (b"", b" "):  # one of the two puts b at an odd place
        text = header + padding
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
        assert torch.equal(CheckpointReader(tmp_path).get("b"), tensor)


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(micro: Path) -> None:
    before = CheckpointReader(micro).get("model.norm.weight").clone()
    CheckpointReader(micro).get("model.norm.weight").zero_()
    assert torch.equal(CheckpointReader(micro).get("model.norm.weight"), before)
    assert before.any()


def damage(micro: Path, how: str) -> None:
    shards = sorted(micro.glob("*.safetensors"))
    if how == "truncated":
        shards[1].write_bytes(shards[1].read_bytes()[:-1])
    elif how == "missing file":
        shards[1].unlink()
    elif how == "not safetensors":
        shards[0].write_bytes(b"<html>not found</html>")
    elif how == "empty":
        shards[0].write_bytes(b"")
    elif how == "header":
        data = bytearray(shards[0].read_bytes())
        data[10] ^= 0xFF
        shards[0].write_bytes(bytes(data))
    elif how == "config":
        config = json.loads((micro / "config.json").read_text())
        (micro / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}))
    elif how == "no config":
        (micro / "config.json").unlink()
    elif how == "vocabulary":
        config = json.loads((micro / "config.json").read_text())
        (micro / "config.json").write_text(json.dumps(config | {"vocab_size": 600}))
    elif how == "index":
        (micro / INDEX).write_text("{}")
    elif how == "index json":
        (micro / INDEX).write_text("{")
    elif how == "nothing":
        for file in micro.glob("*.safetensors*"):
            file.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"model-0000\d-of-.*cut off: it should have [\d,]+ bytes and has"),
        ("missing file", "model-0000.*cannot be read: No such file"),
        ("not safetensors", "not a safetensors file"),
        ("empty", "not a safetensors file"),
        ("header", "header is damaged"),
        ("config", r"missing, such as model\.layers\.2\."),
        ("no config", r"config\.json: cannot be read"),
        ("vocabulary", r"embed_tokens.weight is BF16 \[512, 64\] in model-.*, not BF16 \[600, 64\]"),
        ("index", "no weight_map"),
        ("index json", "not valid JSON"),
        ("nothing", "no checkpoint here"),
    ],
)
def test_damage_is_named(micro: Path, how: str, message: str) -> None:
    damage(micro, how)
    with pytest.raises(UserError, match=message):
        CheckpointReader(micro).check()


def test_bf16_experts_and_leftover_tensors_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(8, 64, 192).bfloat16()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(UserError, match="not packed MXFP4"):
        CheckpointReader(tmp_path).check(MICRO)
    write_tiny(tmp_path / "m", MICRO)
    with pytest.raises(UserError, match=r"unexpected, such as model\.layers\.1"):
        CheckpointReader(tmp_path / "m").check(MICRO.replace(layers=1))


def written(folder: Path, **options: Any) -> CheckpointWriter:
    return CheckpointWriter(folder, layout.tensors(MICRO), 100_000, **options)


def write_some(writer: CheckpointWriter, source: CheckpointReader) -> None:
    with writer:
        for name in source.names()[:25]:
            writer.add(name, source.get(name))
        raise KeyboardInterrupt


def test_an_unfinished_checkpoint_leaves_nothing_behind(micro: Path, tmp_path: Path) -> None:
    source = CheckpointReader(micro)
    with pytest.raises(KeyboardInterrupt):
        write_some(written(tmp_path / "out"), source)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(AssertionError, match="were not written"), written(tmp_path / "out"):
        pass


def test_an_interrupted_checkpoint_continues(micro: Path, tmp_path: Path) -> None:
    source, out = CheckpointReader(micro), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_some(written(out, resume=True), source)
    with written(out, resume=True) as writer:
        assert 0 < len(writer.done) <= 25
        for name in reversed(source.names()):  # tensors may come in any order and in parts
            if name not in writer.done:
                tensor = source.get(name)
                middle = len(tensor) // 2
                writer.add_rows(name, middle, tensor[middle:])
                writer.add_rows(name, 0, tensor[:middle])
    for shard in micro.glob("*.safetensors*"):
        assert (out / shard.name).read_bytes() == shard.read_bytes()
    # A writer with other metadata does not continue these shards.
    with pytest.raises(UserError, match="already holds a checkpoint"):
        written(out, resume=True, metadata={"seed": "1"})


def test_a_folder_with_a_checkpoint_is_refused(micro: Path) -> None:
    with pytest.raises(UserError, match="already holds a checkpoint"):
        written(micro)


def test_too_small_a_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DoesNotFitError, match=r"needs 0.0 GB of disk and 0.0 GB are free"):
        written(tmp_path / "out")


def test_side_files_are_copied(micro: Path, tmp_path: Path) -> None:
    (micro / "chat_template.jinja").write_text("{{ messages }}")
    (micro / "notes.txt").write_text("not part of a model")
    names = copy_side_files(micro, tmp_path / "copy")
    assert names == ["config.json", "generation_config.json", "chat_template.jinja"]
    assert (tmp_path / "copy" / "config.json").read_bytes() == (micro / "config.json").read_bytes()
    assert sorted(file.name for file in (tmp_path / "copy").iterdir()) == sorted(names)
