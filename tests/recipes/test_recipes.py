"""Tests of the packaged recipes, of their stated memory, and of the reference made from the schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ossia import recipes
from ossia.config import Recipe
from ossia.errors import UserError
from ossia.plan import FoundModel, memory
from ossia.plan.inputs import PUBLISHED_SHAPES
from ossia.recipes.document import document, kind

FULL_SIZE = ["gpt-oss-20b-lora", "gpt-oss-120b-lora"]


@pytest.mark.parametrize("name", recipes.available())
def test_packaged_recipe_is_valid_and_describes_itself(name: str) -> None:
    recipe = recipes.load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert re.search("estimated by ossia plan, not measured|measured in", recipe.hardware)


def test_the_recipes_promised_are_there() -> None:
    assert set(FULL_SIZE) <= set(recipes.available())


@pytest.mark.parametrize("name", FULL_SIZE)
def test_hardware_line_says_what_the_plan_says(name: str) -> None:
    recipe = recipes.load_recipe(name)
    shape = PUBLISHED_SHAPES[recipe.model.path.removeprefix("openai/")]
    stated = [float(number) for number in re.findall(r"(\d+) GB", recipe.hardware)]
    lengths = [int(number.replace(",", "")) for number in re.findall(r"at ([\d,]+)", recipe.hardware)]
    assert lengths[0] == recipe.data.max_tokens
    assert len(stated) == len(lengths) == 2
    for gigabytes, length in zip(stated, lengths, strict=True):
        sections = recipe.model_dump()
        sections["data"]["max_tokens"] = sections["train"]["tokens_per_micro_batch"] = length
        found = FoundModel(name, shape, None, shape.vocabulary)
        lines = memory.lines(Recipe.model_validate(sections), found, length, "cuda", "bfloat16")
        assert gigabytes == pytest.approx(sum(line.bytes for line in lines) / 1e9, abs=1)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_what_a_recipe_spells_out_matters(name: str) -> None:
    """Every setting that differs from the default has a comment in its line."""
    text = recipes.recipe_file(name).read_text(encoding="utf-8")
    chosen, default = recipes.load_recipe(name).model_dump(), Recipe().model_dump()
    for section in ("model", "data", "lora", "train"):
        for key, value in chosen[section].items():
            if value != default[section][key]:
                line = next(line for line in text.splitlines() if line.strip().startswith(f"{key}:"))
                assert "#" in line, line


def test_user_gives_the_data_with_set() -> None:
    recipe = recipes.load_recipe("gpt-oss-20b-lora", ["data.train=my.jsonl"])
    assert recipe.data.train == ["my.jsonl"]
    assert recipes.load_recipe("gpt-oss-20b-lora").data.train == []


def test_file_goes_before_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt-oss-20b-lora").write_text("name: mine")
    assert recipes.load_recipe("gpt-oss-20b-lora").name == "mine"


def test_copy_keeps_comments_and_does_not_overwrite(tmp_path: Path) -> None:
    target = recipes.copy("gpt-oss-20b-lora", tmp_path)
    assert target == tmp_path / "gpt-oss-20b-lora.yaml"
    assert target.read_bytes() == recipes.recipe_file("gpt-oss-20b-lora").read_bytes()
    target.write_text("name: changed")
    with pytest.raises(UserError, match="exists already"):
        recipes.copy("gpt-oss-20b-lora", target)
    assert target.read_text() == "name: changed"
    recipes.copy("gpt-oss-20b-lora", target, force=True)
    assert recipes.load_recipe(str(target)).name == "gpt-oss-20b-lora"
    with pytest.raises(UserError, match="cannot be written"):
        recipes.copy("gpt-oss-20b-lora", tmp_path / "missing" / "x.yaml")


def test_reference_is_not_stale() -> None:
    file = Path(__file__).parents[2] / "docs" / "config.md"
    assert file.read_text(encoding="utf-8") == document(), "python -m ossia.recipes.document > docs/config.md"


def test_reference_has_every_setting() -> None:
    text = document()
    for name, _, explanation in recipes.recipe_fields():
        section, _, key = name.rpartition(".")
        part = text.split(f"## `{section}`" if section else "## Top level")[1].split("\n## ")[0]
        row = next(line for line in part.splitlines() if line.startswith(f"| `{key}`"))
        assert explanation.replace("\n", " ").replace("|", "\\|") in row


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 512}, "whole number from 1 to 512"),
        ({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}, "number above 0"),
        ({"type": "array", "items": {"enum": ["a", "b"], "type": "string"}}, "list of: a, b"),
        ({"type": "boolean"}, "true or false"),
    ],
)
def test_kinds_in_words(node: dict[str, object], words: str) -> None:
    assert kind(node) == words
