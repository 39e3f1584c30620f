"""Tests of tiny checkpoints: transformers reads them like the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ossia.checkpoint import layout
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import MICRO, TINY, random_weights, write_tiny
from ossia.errors import UserError
from ossia.kernels.reference.mxfp4 import dequantise


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "micro", MICRO)


@pytest.mark.parametrize("shape", [TINY, MICRO])
def test_shapes_have_every_feature_of_the_published_models(shape: Shape) -> None:
    assert shape.layers >= 2, "both kinds of attention"
    assert shape.heads % shape.kv_heads == 0
    assert shape.heads > shape.kv_heads > 1, "grouped queries"
    assert shape.experts > shape.experts_per_token > 1
    matrices = [spec for spec in layout.tensors(shape, mxfp4=False) if spec.kind in ("experts", "attention")]
    assert all(len(set(spec.shape[-2:])) == 2 for spec in matrices if len(spec.shape) > 1), "a transposition shows"
    for name in ("rope_theta", "rope_factor", "rope_truncate", "swiglu_limit", "rms_eps"):
        assert getattr(shape, name) == getattr(Shape.GPT_OSS_20B, name)
    assert TINY.vocabulary == 201_088


def test_transformers_loads_it_whole_and_reads_the_same_numbers(micro: Path) -> None:
    from transformers import GptOssForCausalLM

    model, report = GptOssForCausalLM.from_pretrained(micro, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    reader = CheckpointReader(micro)
    compared = set()
    for name, theirs in model.state_dict().items():
        if f"{name}_blocks" in reader.stored:
            values = dequantise(reader.get(f"{name}_blocks"), reader.get(f"{name}_scales"))
            assert torch.equal(theirs, values.transpose(1, 2)), name
            compared |= {f"{name}_blocks", f"{name}_scales"}
        else:
            assert torch.equal(theirs, reader.get(name)), name
            compared.add(name)
    assert compared == set(reader.names())
    assert model.generation_config.eos_token_id == [511, 510, 509]
    with torch.no_grad():
        logits = model(torch.arange(40)[None]).logits
    assert logits.isfinite().all()
    assert logits.std() > 0.01


def test_given_weights_are_kept_as_well_as_four_bits_allow(tmp_path: Path) -> None:
    weights = random_weights(MICRO, seed=3)
    reader = CheckpointReader(write_tiny(tmp_path / "m", MICRO, weights=weights))
    for name, weight in weights.items():
        if f"{name}_blocks" not in reader.stored:
            assert torch.equal(reader.get(name), weight.bfloat16())
            continue
        values = dequantise(reader.get(f"{name}_blocks"), reader.get(f"{name}_scales"), torch.float32)
        error = (values.transpose(1, 2) - weight).norm() / weight.norm()
        assert 0.10 < error < 0.12, name  # four bits on Gaussian weights: 0.112


def test_seed_decides(tmp_path: Path, micro: Path) -> None:
    again = write_tiny(tmp_path / "again", MICRO)
    other = write_tiny(tmp_path / "other", MICRO, seed=1)
    weights = (micro / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == weights
    assert (other / "model.safetensors").read_bytes() != weights


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    weights = random_weights(MICRO)
    del weights["lm_head.weight"]
    with pytest.raises(UserError, match=r"weight lm_head\.weight is missing"):
        write_tiny(tmp_path / "a", MICRO, weights=weights)
    weights["lm_head.weight"] = torch.zeros(64, 512)
    with pytest.raises(UserError, match=r"has the shape \[64, 512\], and should be \[512, 64\]"):
        write_tiny(tmp_path / "b", MICRO, weights=weights)
    with pytest.raises(UserError, match="not part of this model, such as surplus"):
        write_tiny(tmp_path / "c", MICRO, weights=weights | {"surplus": torch.zeros(1)})
    assert not list(tmp_path.glob("*/model*"))


def test_the_full_vocabulary_comes_with_tokenizer_and_template(tmp_path: Path, tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    narrow = MICRO.replace(hidden=32, vocabulary=201_088)
    folder = write_tiny(tmp_path / "m", narrow)
    CheckpointReader(folder).check(narrow)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("<|start|>user<|message|>Ossia<|end|>")[0] == 200_006
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Ossia?"}], tokenize=False)
    assert "<|start|>user<|message|>Ossia?<|end|>" in text
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.eos_token_id == config["eos_token_id"] == 200_002
    assert tokenizer.pad_token_id == config["pad_token_id"] == 199_999
    generation = json.loads((folder / "generation_config.json").read_text())
    published = json.loads((tokenizer_folder / "generation_config.json").read_text())
    assert generation == {key: value for key, value in published.items() if key != "transformers_version"}
