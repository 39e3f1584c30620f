"""Tests of reading recipes: an error names its place, and no setting is ignored."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ossia import recipes
from ossia.config import Recipe
from ossia.errors import UserError


def parse(text: str, *overrides: str) -> Recipe:
    return recipes.parse_recipe(text, where="recipe.yaml", overrides=overrides)


def failure(text: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as error:
        parse(text, *overrides)
    assert error.value.exit_code == 2
    return error.value


def test_unknown_key_names_line_and_the_key_that_was_meant() -> None:
    error = failure("name: x\ntrain:\n  steps: 3\n  learning_rte: 1e-5\n")
    assert error.where == "recipe.yaml:4"
    assert "train.learning_rte is not a setting" in error.what
    assert error.do == "did you mean learning_rate?"


def test_unknown_key_that_belongs_to_another_section() -> None:
    error = failure("learning_rate: 1.0e-5\n")
    assert error.where == "recipe.yaml:1"
    assert error.do == "did you mean train.learning_rate?"


def test_unknown_section() -> None:
    error = failure("model:\n  path: x\ntrian:\n  steps: 1\n")
    assert error.where == "recipe.yaml:3"
    assert error.do == "did you mean train?"


def test_unknown_key_in_set() -> None:
    error = failure("name: x", "train.learning_rte=1e-5")
    assert error.where == "--set train.learning_rte=1e-5"
    assert error.do == "did you mean learning_rate?"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("train:\n  steps: many\n", 2, ("train.steps", "integer", "'many'")),
        ("train:\n  steps: 0\n", 2, ("train.steps", "greater than or equal to 1", "0")),
        ("train:\n  steps: 1.5\n", 2, ("train.steps", "integer")),
        ("lora:\n  rank: 1000\n", 2, ("lora.rank", "less than or equal to 512")),
        ("train:\n  schedule: cosin\n", 2, ("train.schedule", "'cosine'", "'cosin'")),
        ("lora:\n  targets: []\n", 2, ("lora.targets", "at least 1")),
        ("lora:\n  targets:\n  - attention\n  - norms\n", 4, ("lora.targets.1", "'experts'", "'norms'")),
        ("lora:\n  attention_ranks: {qkv: 4}\n", 2, ("lora.attention_ranks", "not an attention projection")),
        ("lora:\n  attention_ranks: {q_proj: 0}\n", 2, ("lora.attention_ranks", "between 1 and 512")),
        ("data:\n  train: 5\n", 2, ("data.train", "list")),
        ("data:\n  train:\n  - a.jsonl\n  - path: b\n    limit: 0\n", 5, ("data.train.1.limit", "greater")),
        ("data:\n  train:\n  - path: b\n    fromat: openai\n", 4, ("data.train.0.fromat", "not a setting")),
        ("data:\n  channel_weights: {finale: 1}\n", 2, ("data.channel_weights", "not a channel")),
        ("\nname: ../evil\n", 2, ("name", "pattern")),
        ("train: 5\n", 1, ("train", "5")),
    ],
)
def test_wrong_values_name_line_key_and_value(text: str, line: int, words: tuple[str, ...]) -> None:
    error = failure(text)
    assert error.where == f"recipe.yaml:{line}"
    for word in words:
        assert word in error.what


@pytest.mark.parametrize(
    "override", ["train.steps=zero", "train.steps", "=3", "train..steps=3", "name.x=1", "train.steps=[1"]
)
def test_wrong_overrides_name_the_flag(override: str) -> None:
    assert failure("name: x", override).where == f"--set {override}"


def test_a_value_out_of_bounds_in_set_over_a_good_one_blames_the_flag() -> None:
    assert failure("train:\n  steps: 3\n", "train.steps=-1").where == "--set train.steps=-1"
    assert failure("train:\n  steps: -3\n", "train.epochs=1").where == "recipe.yaml:2"


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.e-5", "1.0e-5", "0.00001", "+1e-05", "'1e-5'"])
def test_exponents_without_a_dot_are_numbers(text: str) -> None:
    """YAML 1.1 reads 1e-5 as text."""
    assert parse(f"train:\n  learning_rate: {text}\n").train.learning_rate == 1e-5
    assert parse("", f"train.learning_rate={text}").train.learning_rate == 1e-5


def test_a_whole_number_in_exponent_form() -> None:
    assert parse("train:\n  steps: 1e3\n").train.steps == 1000


def test_a_date_is_text() -> None:
    """YAML 1.1 reads it as a date object."""
    assert parse("data:\n  date: 2026-11-20\n").data.date == "2026-11-20"
    assert parse("", "data.date=2026-11-20").data.date == "2026-11-20"


@pytest.mark.parametrize("key", ["train", "validation"])
def test_a_single_source_needs_no_brackets(key: str) -> None:
    assert getattr(parse(f"data:\n  {key}: a.jsonl\n").data, key) == ["a.jsonl"]
    assert getattr(parse("", f"data.{key}=a.jsonl").data, key) == ["a.jsonl"]
    assert getattr(parse("", f"data.{key}=[a.jsonl, b]").data, key) == ["a.jsonl", "b"]
    assert parse("", "eval.data=x.jsonl").eval.data == ["x.jsonl"]


def test_a_key_set_twice_is_an_error() -> None:
    error = failure("train:\n  steps: 3\nlora:\n  rank: 4\ntrain:\n  epochs: 2\n")
    assert error.where == "recipe.yaml:5"
    assert "train is set twice, first in line 1" in error.what
    assert failure("train:\n  steps: 3\n  steps: 4\n").where == "recipe.yaml:3"


def test_an_empty_section_is_no_error() -> None:
    assert parse("train:\n  # steps: 3\nname: x\n") == parse("name: x")
    assert parse("train:\n", "train.steps=2").train.steps == 2


def test_a_micro_batch_must_hold_an_example() -> None:
    error = failure("data: {max_tokens: 4096}\ntrain: {tokens_per_micro_batch: 1024}\n")
    assert "tokens_per_micro_batch (1024)" in error.what
    assert "max_tokens (4096)" in error.what


OLD, NEW = "train.tokens_per_pass", "train.tokens_per_micro_batch"


def test_a_setting_is_known_by_its_former_name() -> None:
    """A file, overrides and Python give the same number. Written recipes have only the present name."""
    wanted = parse("train: {tokens_per_micro_batch: 5000}")
    assert parse("train: {tokens_per_pass: 5000}") == parse("name: run", f"{OLD}=5000") == wanted
    assert Recipe.model_validate({"train": {"tokens_per_pass": 5000}}) == wanted
    assert parse("train: {tokens_per_pass: 5000, tokens_per_micro_batch: 5000}") == wanted
    assert "tokens_per_micro_batch: 5000" in recipes.dump(wanted) and "tokens_per_pass" not in recipes.dump(wanted)
    assert parse(recipes.dump(wanted).replace("tokens_per_micro_batch", "tokens_per_pass")) == wanted
    error = failure("train:\n  tokens_per_pass: 1\n")
    assert error.where == "recipe.yaml:2" and "train.tokens_per_micro_batch" in error.what


@pytest.mark.parametrize("names", [(OLD, NEW), (NEW, OLD), (OLD, OLD), (NEW, NEW)])
def test_an_override_goes_on_top_whatever_the_names(names: tuple[str, str]) -> None:
    text = f"train:\n  {names[0].partition('.')[2]}: 5000\n"
    assert parse(text, f"{names[1]}=6000").train.tokens_per_micro_batch == 6000
    error = failure(text, f"{names[1]}=1")
    assert error.where == f"--set {names[1]}=1"


@pytest.mark.parametrize("overrides", [(), (f"{OLD}=6000", f"{NEW}=5000")])
def test_two_values_under_two_names_are_an_error_that_names_both(overrides: tuple[str, ...]) -> None:
    error = failure("" if overrides else "train: {tokens_per_pass: 6000, tokens_per_micro_batch: 5000}", *overrides)
    assert f"{NEW} is 5000" in error.what and f"{OLD}, its former name, is 6000" in error.what
    with pytest.raises(ValidationError, match=f"{NEW} is 5000 and {OLD}"):
        Recipe.model_validate({"train": {"tokens_per_pass": 6000, "tokens_per_micro_batch": 5000}})


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("train:\n\tsteps: 3\n", "recipe.yaml:2"),
        ("a: [1\nb: 2\n", "recipe.yaml:2"),
        ("- 1\n", "recipe.yaml"),
        ("train: &a\n  steps: *a\n", "recipe.yaml"),
        ("train:\n  seed: " + "1" * 5000, "recipe.yaml"),
        ("name: x\n---\nname: y\n", "recipe.yaml"),
        ("name: !!python/object:os.system x\n", "recipe.yaml:1"),
    ],
)
def test_what_is_not_a_recipe_at_all(text: str, where: str) -> None:
    assert str(failure(text).where).startswith(where)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        recipes.load_recipe("tiny-dmo")
    assert error.value.do == "tiny-demo"
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        recipes.load_recipe(str(bad))


def test_sections_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValidationError):
        Recipe().train.steps = 3  # type: ignore[misc]


def test_a_dumped_recipe_reads_back_the_same() -> None:
    recipe = parse("name: a.b\ntrain: {learning_rate: 1e-5}\ndata: {train: 'x: y', date: 2026-01-02}\n")
    assert parse(recipes.dump(recipe)) == recipe


@settings(deadline=None)
@example(
    train={"learning_rate": 1.0, "steps": None, "weight_decay": 0.0, "recompute": False}, sources=[], identity="0E0"
)
@given(
    st.fixed_dictionaries(
        {
            "learning_rate": st.floats(1e-12, 10),
            "steps": st.none() | st.integers(1, 10**6),
            "weight_decay": st.floats(0, 1),
            "recompute": st.booleans(),
        }
    ),
    st.lists(st.text(min_size=1), max_size=3),
    st.text(),
)
def test_every_recipe_survives_dump_and_parse(train: dict[str, Any], sources: list[str], identity: str) -> None:
    recipe = Recipe.model_validate({"train": train, "data": {"train": sources, "identity": identity}})
    assert parse(recipes.dump(recipe)) == recipe


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_a_recipe_or_an_error_for_people(text: str) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(parse(text), Recipe)


@settings(deadline=None)
@given(st.text(max_size=40), st.sampled_from(["", "name=", "train.steps=", "data.train=", "lora={", "train."]))
def test_any_override_gives_a_recipe_or_an_error_for_people(text: str, start: str) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(parse("", start + text), Recipe)


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_words_that_yaml_takes_for_booleans(word: str) -> None:
    assert parse("", f"train.share_prefixes={word}").train.share_prefixes == word
    assert parse(f"train: {{share_prefixes: {word}}}").train.share_prefixes == word


def test_every_setting_is_documented_and_listed() -> None:
    listed = list(recipes.recipe_fields())
    assert all(text for _, _, text in listed)
    flat = {f"{s}.{k}" for s, v in Recipe().model_dump().items() if isinstance(v, dict) for k in v}
    assert {name for name, _, _ in listed if "." in name} == flat
    assert {name: default for name, default, _ in listed}["lora.rank"] == Recipe().lora.rank


def test_schema_accepts_what_the_model_accepts() -> None:
    schema = recipes.recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(Recipe().model_dump(mode="json"), schema)
    for wrong in ({"train": {"learning_rte": 1}}, {"train": {"steps": 0}}, {"lora": {"targets": ["norms"]}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_yaml_keys_that_are_no_text() -> None:
    assert "1 is not a setting" in failure("1: 2\n").what
    assert yaml.safe_load("1: 2") == {1: 2}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.steps=true", "steps is true, and a number is expected"),
        ("train.learning_rate=no", "learning_rate is false, and a number is expected"),
        ("chat.seed=yes", "seed is true, and a number is expected"),
        ("data.max_tokens=on", "max_tokens is true, and a number is expected"),
        ("train.learning_rate=.inf", "finite"),
        ("lora.alpha=.nan", "finite"),
        ("eval.temperature=1e400", "finite"),
        ("train.seed=-1", "greater than or equal to 0"),
        ("train.seed=4294967296", "less than or equal to 4294967295"),
        ("eval.seed=1e23", "seed"),
        ("chat.seed=-5", "greater than or equal to 0"),
        ("data.max_tokens=20000", "Set both"),
    ],
)
def test_values_that_are_not_numbers_of_their_kind_are_refused(override: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        recipes.parse_recipe("", where="test", overrides=[override])
    assert says in str(refused.value)


def test_lists_may_be_given_as_words_on_the_command_line() -> None:
    found = recipes.parse_recipe(
        "", where="test", overrides=["lora.targets=attention, router", "train.report_to=tensorboard"]
    )
    assert found.lora.targets == ["attention", "router"]
    assert found.train.report_to == ["tensorboard"]
    with pytest.raises(UserError, match="attentoin"):
        recipes.parse_recipe("", where="test", overrides=["lora.targets=attentoin"])
    flags = recipes.parse_recipe("", where="test", overrides=["train.recompute=false", "train.share_prefixes=on"])
    assert (flags.train.recompute, flags.train.share_prefixes) == (False, "on")


def test_aliases_that_stand_for_too_many_values_are_refused_at_once() -> None:
    lines = ["a: &a [x, x]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghij"))]
    for text in ("\n".join(lines), "a: &a\n  b: *a\n"):
        with pytest.raises(UserError):
            recipes.parse_recipe(text, where="test")
    with pytest.raises(UserError, match="stands for more than"):
        recipes.parse_recipe("", where="test", overrides=["data.train=" + "{" + ", ".join(lines) + "}"])
