"""The template of an export renders as training did, on any base; the recipe's settings travel with every export."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ossia import runs
from ossia.config import DataSection, ModelSection, Recipe
from ossia.errors import UserError
from ossia.export import job
from ossia.export.source import find_source
from ossia.export.targets.hf import BASE_TEMPLATE
from ossia.generate.session import Session
from ossia.generate.subject import open_subject
from ossia.harmony import chat_template
from ossia.harmony.conversation import SystemSettings
from ossia.harmony.from_openai import conversation_from_chat
from ossia.harmony.render import render_prompt
from ossia.harmony.template import render_template
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.workflows import chat as workflow
from support import generate_fakes
from support import harmony_chats as chats
from support.export_samples import ATTENTION, make_base, stock_adapter

SETTINGS = {
    "defaults": DataSection(),
    "everything else": DataSection(
        identity='You are "Ossia" \\ {{ 1 }} {% x %}\nof two lines. 🎼',
        knowledge_cutoff="2026-01",
        date="2026-11-28",
        effort="high",
        builtin_tools=["browser", "python"],
        header_order="recipient-first",
    ),
    "one tool": DataSection(builtin_tools=["python"], effort="low"),
}
THEIRS = "{# somebody else's #}{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a template of its own in both places where programs look for one."""
    folder = make_base(tmp_path_factory.mktemp("base") / "base-model")
    (folder / "chat_template.jinja").write_text(THEIRS)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": THEIRS, "eos_token": "<|return|>"}))
    return folder


@pytest.fixture
def run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> runs.Run:
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    made = runs.create(Recipe(name="t", model=ModelSection(path=str(base)), data=SETTINGS[request.param]), "test")
    stock_adapter(base, made.checkpoint(10), ATTENTION)
    return made


@pytest.mark.parametrize("run", SETTINGS, indirect=True)
def test_conversations_through_the_exported_template_are_those_of_training(
    run: runs.Run, tokenizer_folder: Path, tmp_path: Path
) -> None:
    data = run.recipe().data
    done = job.write_export(find_source(run.id), "hf", tmp_path / "out")
    template = (done.path / "chat_template.jinja").read_text()
    rng, vocabulary = random.Random(5), Vocabulary.load(tokenizer_folder)
    system = SystemSettings(data.identity, data.knowledge_cutoff, data.date, data.effort)
    compared = 0
    while compared < 200:
        messages, tools, _ = chats.chat(rng)
        try:
            trained = conversation_from_chat(messages, tools, system=system, builtin_tools=data.builtin_tools)
        except UserError:  # it calls a built-in tool that this recipe does not have
            continue
        compared += 1
        text = render_template(template, messages, tools, True)
        assert vocabulary.encode_with_specials(text) == render_prompt(trained, vocabulary, data.header_order), messages
    assert (done.path / BASE_TEMPLATE).read_text() == THEIRS
    assert done.report["template"] == {"made_by": "ossia", "kept": BASE_TEMPLATE}
    config = json.loads((done.path / "tokenizer_config.json").read_text())
    assert config == {"eos_token": "<|return|>"}


def test_a_template_of_ours_is_not_kept_twice(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    for file in base.iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "base" / "chat_template.jinja").write_text(chat_template())
    (tmp_path / "base" / "tokenizer_config.json").unlink()
    stock_adapter(tmp_path / "base", tmp_path / "adapter", ATTENTION)
    done = job.write_export(find_source(str(tmp_path / "adapter"), str(tmp_path / "base")), "hf", tmp_path / "out")
    assert done.report["template"]["kept"] is None
    assert not (done.path / BASE_TEMPLATE).exists()


@pytest.mark.parametrize("run", ["everything else"], indirect=True)
@pytest.mark.parametrize("target", ["hf", "adapter"])
def test_settings_travel_to_card_report_and_chat(
    run: runs.Run, target: str, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, vocabulary = run.recipe().data, Vocabulary.load(tokenizer_folder)
    done = job.write_export(find_source(run.id), target, tmp_path / "out")
    expected = data.model_dump(
        include={"identity", "knowledge_cutoff", "date", "effort", "builtin_tools", "header_order"}
    )
    assert done.report["rendering"] == expected
    card = (done.path / "README.md").read_text()
    for words in ("2026-11-28", "| reasoning effort | high |", "browser, python", "recipient-first"):
        assert words in card
    asked = []
    monkeypatch.setattr("ossia.generate.subject.Subject.vocabulary", lambda _: vocabulary)
    monkeypatch.setattr("ossia.generate.subject.Subject.engine", lambda _: generate_fakes.Scripted([]))
    model = [f"model.path={run.recipe().model.path}"] if target == "adapter" else []
    for reference in (run.id, str(done.path)):
        subject = open_subject(reference, overrides=model)
        found = subject.recipe.data
        assert {name: getattr(found, name) for name in expected} == expected
        opened: Session = workflow.chat(reference, overrides=model).sessions[""]
        asked.append((opened.conversation, opened._order))
        assert opened.conversation.system is not None
        assert [space.name for space in opened.conversation.system.namespaces] == ["browser", "python"]
    assert asked[0] == asked[1]
    assert open_subject(str(done.path), overrides=[*model, "data.effort=low"]).recipe.data.effort == "low"


def test_a_folder_whose_settings_are_damaged_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    stock_adapter(base, tmp_path / "adapter", ATTENTION)
    report: dict[str, Any] = {"rendering": {"effort": "huge"}}
    (tmp_path / "adapter" / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="effort") as refused:
        open_subject(str(tmp_path / "adapter"), overrides=[f"model.path={base}"])
    assert "report.json" in (refused.value.where or "")
