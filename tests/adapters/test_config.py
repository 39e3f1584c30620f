"""Tests of an adapter's configuration: the patterns that match a name, and its rank and scale."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ossia.adapters.config import AdapterConfig
from ossia.config import LoraSection

LAYER = "model.layers.0"


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("q_proj", f"{LAYER}.self_attn.q_proj", True),
        ("q_proj", "q_proj", True),
        ("self_attn", f"{LAYER}.self_attn.q_proj", False),  # only the end of a name matches
        ("mlp.experts", f"{LAYER}.mlp.experts.down_proj", False),
        ("proj", f"{LAYER}.self_attn.q_proj", False),  # and only whole parts between dots
        ("up_proj", f"{LAYER}.mlp.experts.gate_up_proj", False),
        (r"layers\.\d+\..*", f"{LAYER}.self_attn.q_proj", True),
        ("q_proj|k", f"{LAYER}.self_attn.q_proj", True),
        ("q|k_proj", f"{LAYER}.self_attn.q_proj", False),
    ],
)
def test_a_pattern_matches_the_end_of_a_name_at_a_dot(pattern: str, name: str, matches: bool) -> None:
    config = AdapterConfig(4, 8.0, rank_pattern={pattern: 7}, alpha_pattern={pattern: 5.0})
    assert (config.rank_of(name), config.alpha_of(name)) == ((7, 5.0) if matches else (4, 8.0))


def test_the_first_pattern_that_matches_counts() -> None:
    config = AdapterConfig(4, 8.0, rank_pattern={"k_proj": 1, "self_attn.q_proj": 2, "q_proj": 3})
    assert config.rank_of(f"{LAYER}.self_attn.q_proj") == 2


@pytest.mark.parametrize(
    ("targets", "name", "chosen"),
    [
        (("q_proj",), f"{LAYER}.self_attn.q_proj", True),
        (("proj",), f"{LAYER}.self_attn.q_proj", False),
        (("self_attn",), f"{LAYER}.self_attn.q_proj", False),
        (("lm_head",), "lm_head", True),
        (r".*\.q_proj", f"{LAYER}.self_attn.q_proj", True),
        (r"q_proj", f"{LAYER}.self_attn.q_proj", False),
    ],
)
def test_targets_are_ends_of_names_or_one_whole_expression(targets: Any, name: str, chosen: bool) -> None:
    assert AdapterConfig(1, 1, target_modules=targets).targets_module(name) == chosen
    if not isinstance(targets, str):
        assert AdapterConfig(1, 1, target_parameters=targets).targets_parameter(name) == chosen


def test_the_scale_divides_by_the_rank_of_the_name_or_by_its_root() -> None:
    patterns: dict[str, Any] = {"rank_pattern": {"q_proj": 9}, "alpha_pattern": {"v_proj": 6.0}}
    plain, stabilised = AdapterConfig(4, 8.0, **patterns), AdapterConfig(4, 8.0, rslora=True, **patterns)
    assert [plain.scale_of(name) for name in ("q_proj", "k_proj", "v_proj")] == [8 / 9, 2.0, 1.5]
    assert [stabilised.scale_of(name) for name in ("q_proj", "k_proj", "v_proj")] == [8 / 3, 4.0, 3.0]


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "4", None])
def test_a_rank_is_a_whole_number_from_one(wrong: Any) -> None:
    for settings in ({"rank": wrong, "alpha": 1.0}, {"rank": 1, "alpha": 1.0, "rank_pattern": {"q_proj": wrong}}):
        with pytest.raises(ValueError, match="is not a rank"):
            AdapterConfig(**settings)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, True, "8", None])
def test_an_alpha_is_a_finite_number(wrong: Any) -> None:
    for settings in ({"rank": 1, "alpha": wrong}, {"rank": 1, "alpha": 1.0, "alpha_pattern": {"q_proj": wrong}}):
        with pytest.raises(ValueError, match="is not an alpha"):
            AdapterConfig(**settings)


def test_a_new_adapter_has_each_target_s_rank_and_scale() -> None:
    """Projections with a rank of their own keep the scale of the attention."""
    section = LoraSection(
        rank=16, alpha=32, attention_ranks={"q_proj": 8}, expert_rank=2, expert_alpha=5, router_rank=4, router_alpha=3,
        vocabulary_rank=6, vocabulary_alpha=9, targets=["attention", "experts", "router", "embeddings", "head"],
    )  # fmt: skip
    config = AdapterConfig.of(section)
    names = {
        f"{LAYER}.self_attn.q_proj": (8, 2.0),
        f"{LAYER}.self_attn.k_proj": (16, 2.0),
        f"{LAYER}.mlp.experts.gate_up_proj": (2, 2.5),
        f"{LAYER}.mlp.experts.down_proj": (2, 2.5),
        f"{LAYER}.mlp.router.weight": (4, 0.75),
        "model.embed_tokens": (6, 1.5),
        "lm_head": (6, 1.5),
    }
    assert {name: (config.rank_of(name), config.scale_of(name)) for name in names} == names
    assert AdapterConfig.of(LoraSection(targets=["experts"])).target_modules == ()
