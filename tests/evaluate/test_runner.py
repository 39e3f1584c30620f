"""Tests of whole evaluations: paired results, and a file that survives Ctrl-C and is never overwritten."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ossia import events, runs
from ossia.adapters import apply as lora
from ossia.checkpoint.layout import Shape
from ossia.checkpoint.tiny import write_tiny
from ossia.config import EvalSection, Recipe
from ossia.data import load_conversations
from ossia.errors import UserError
from ossia.evaluate import runner
from ossia.evaluate.report import group_table, main_table, remarks
from ossia.evaluate.runner import Evaluation, choose, new_file, run_evaluation
from ossia.evaluate.tasks import Question, questions
from ossia.generate import subject as subjects
from ossia.generate.engine import BASE_WEIGHTS, Completion, OnCompletion, Request, Sampling
from ossia.harmony.conversation import Conversation
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.model.load import load_model
from support.generate_fakes import Arms, Scripted, said

FULL_VOCABULARY = Shape(
    layers=1, hidden=32, intermediate=32, experts=4, experts_per_token=2, heads=2, kv_heads=1, head_dim=16
)  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    path = Path(__file__).parents[2] / "examples" / "multilingual" / "heldout.jsonl"
    return load_conversations(path).conversations[::4]


@pytest.fixture(scope="module")
def asked(conversations: list[Conversation], vocabulary: Vocabulary) -> list[Question]:
    return questions(conversations, vocabulary)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("runner") / "model", FULL_VOCABULARY)


@pytest.fixture
def run(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """A run with one checkpoint of an adapter that changes the answers."""
    import torch

    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    made = runs.create(
        Recipe.model_validate(
            {
                "name": "toy",
                "model": {"path": str(model_folder), "dtype": "float32", "device": "cpu"},
                "data": {"effort": "low"},
                "eval": {"max_new_tokens": 4, "batch_size": 2},
            }
        ),
        "test",
    )
    checkpoint = made.checkpoint(10)
    checkpoint.mkdir(parents=True)
    base = load_model(model_folder, dtype="float32", device="cpu")
    base.name_or_path = str(model_folder)
    adapted = lora.attach_adapter(base, rank=2, expert_rank=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in lora.trainable_parameters(adapted):
            parameter.normal_(0, 1.0)
    lora.save_adapter(adapted, checkpoint)
    return made


ARMS = {"base": BASE_WEIGHTS, "tuned": None}


def perfect(asked: Sequence[Question], vocabulary: Vocabulary) -> Scripted:
    """Return an engine that answers every prompt with the expected messages of its row."""
    expected = {q.prompt: {m.channel: m.content for m in q.expected} for q in asked}

    def script(prompt: Sequence[int]) -> list[int]:
        channels = expected[tuple(prompt)]
        return said(vocabulary, channels["final"], channels.get("analysis", ""))

    return Scripted(script)


def english_thinker(vocabulary: Vocabulary) -> Scripted:
    return Scripted(lambda _: said(vocabulary, "The answer is not known to me.", "I do not know what to do here."))


def report_of(asked: list[Question], folder: Path, **settings: Any) -> Evaluation:
    chosen = EvalSection(batch_size=4, **settings)
    return Evaluation("toy", ("base", "tuned"), choose(asked, chosen), chosen, path=new_file(folder))


def test_before_and_after_are_counted_paired_and_grouped(
    asked: list[Question], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    report = report_of(asked, tmp_path / "evals")
    tuned, base, heard = perfect(asked, vocabulary), english_thinker(vocabulary), []
    runner.ask(report, Arms(base, tuned), ARMS, vocabulary, heard.append)
    assert report.complete
    assert sum(heard) == 2 * len(asked)
    assert sorted(map(tuple, base.prompts)) == sorted(map(tuple, tuned.prompts)) == sorted(q.prompt for q in asked)
    summary = report.summary()
    english = sum(q.requested == "English" for q in asked)
    lines = {line.measure: line for line in summary.groups[0].lines}
    assert list(lines) == ["thought language", "answer", "answer language", "well-formed"]
    obeyed = lines["thought language"]
    assert (obeyed.arms["base"].count, obeyed.arms["tuned"].count) == (english, len(asked))
    assert obeyed.difference is not None
    assert (obeyed.difference.gained, obeyed.difference.lost) == (len(asked) - english, 0)
    assert obeyed.difference.low > 0.5
    assert lines["well-formed"].arms["base"].share == 1
    groups = {group.name: group for group in summary.groups}
    assert {"all questions", "thought in German", "thought in English", "kind add"} <= groups.keys()
    parts = [g.lines[0].arms["tuned"].total for name, g in groups.items() if name.startswith("thought in ")]
    assert sum(parts) == len(asked)
    english_line = groups["thought in English"].lines[0]
    assert english_line.difference is not None
    assert english_line.difference.difference == 0


def test_the_file_holds_everything_and_no_second_run_overwrites_it(
    asked: list[Question], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    paths = set()
    for _ in range(2):
        report = report_of(asked, tmp_path / "evals", limit=9)
        engine = Arms(english_thinker(vocabulary), perfect(asked, vocabulary))
        runner.ask(report, engine, ARMS, vocabulary)
        assert report.path is not None
        paths.add(report.path)
    assert len(list((tmp_path / "evals").iterdir())) == len(paths) == 2
    value = json.loads(paths.pop().read_text(encoding="utf-8"))
    assert (value["complete"], value["asked"], value["of"], value["settings"]["limit"]) == (True, 9, 9, 9)
    assert [q["number"] for q in value["questions"]] == sorted(q["number"] for q in value["questions"])
    row = value["questions"][0]
    source = next(q for q in asked if q.number == row["number"])
    assert row["prompt"] == vocabulary.decode(source.prompt)
    assert row["source"] == source.source
    assert row["tuned"]["raw"] == vocabulary.decode(row["tuned"]["ids"])
    assert row["tuned"]["messages"][-1]["content"] == source.expected[-1].content
    assert all(row["tuned"]["verdicts"].values())
    assert row["base"]["verdicts"]["answer"] is False
    assert value["summary"]["groups"][0]["lines"][0]["difference"]["p_value"] <= 1


def test_a_limit_draws_the_same_questions_for_the_same_seed(asked: list[Question]) -> None:
    chosen = choose(asked, EvalSection(limit=12, seed=1))
    assert chosen == choose(asked, EvalSection(limit=12, seed=1))
    assert chosen != choose(asked, EvalSection(limit=12, seed=2))
    assert len({q.number for q in chosen}) == 12
    assert len({q.requested for q in choose(asked, EvalSection(limit=20))}) > 2, "not just the first rows of the file"
    assert len(choose(asked, EvalSection(limit=10_000))) == len(asked)


def test_ctrl_c_keeps_the_answered_pairs(asked: list[Question], vocabulary: Vocabulary, tmp_path: Path) -> None:
    class Interrupted(Scripted):
        def complete(self, requests: Sequence[Request], on_completion: OnCompletion | None = None) -> list[Completion]:
            if self.prompts:
                super().complete(requests[:3], on_completion)
                raise KeyboardInterrupt
            return super().complete(requests, on_completion)

    report = report_of(asked, tmp_path / "evals")
    tuned = Interrupted(perfect(asked, vocabulary).script)
    runner.ask(report, Arms(english_thinker(vocabulary), tuned), ARMS, vocabulary)
    assert not report.complete
    assert len(report.asked) == runner.ROUND * 4 + 3
    assert report.path is not None
    value = json.loads(report.path.read_text(encoding="utf-8"))
    assert (value["complete"], value["asked"], len(value["questions"])) == (False, 7, 7)
    assert value["summary"]["questions"] == 7


def test_nothing_to_ask_and_unknown_languages_are_the_users_business(
    conversations: list[Conversation], vocabulary: Vocabulary
) -> None:
    with pytest.raises(UserError, match="nothing to ask"):
        choose([], EvalSection())
    strange = Conversation(conversations[0].messages, extra={"reasoning_language": "Dothraki"})
    with pytest.raises(UserError, match="Dothraki"):
        choose(questions([strange], vocabulary), EvalSection())


def test_the_tables_show_every_measure_and_every_group_and_the_remarks_the_length(
    asked: list[Question], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    report = report_of(asked, tmp_path, limit=40, max_new_tokens=8)
    runner.ask(report, Arms(english_thinker(vocabulary), perfect(asked, vocabulary)), ARMS, vocabulary)
    columns, rows = main_table(report.summary())
    assert columns == ("measure", "n", "base", "tuned", "change")
    assert [row[0] for row in rows] == ["thought language", "answer", "answer language", "well-formed"]
    assert rows[-1][1:] == ("40", "0 0% (0-9)", "0 0% (0-9)", "+0 (-9,+9)"), "all were cut off"
    columns, rows = group_table(report.summary())
    assert columns == ("questions", "n", "thought language", "answer", "answer language", "well-formed")
    assert [row[0] for row in rows] == [group.name for group in report.summary().groups[1:]]
    assert sum(int(row[1]) for row in rows if row[0].startswith("kind")) == 40
    assert all(row[-1] == "0 > 0" for row in rows)
    assert "40 of 40 cut off" in remarks(report.summary())[1]


def test_a_run_is_evaluated_against_its_own_base(run: runs.Run, conversations: list[Conversation]) -> None:
    subject = subjects.open_subject(run.id)
    report = run_evaluation(subject, conversations[:3], data=["heldout.jsonl"])
    assert report.complete
    assert report.path is not None
    assert report.path.parent == run.path / "evals"
    value = json.loads(report.path.read_text(encoding="utf-8"))
    assert value["run"] == run.id
    assert value["checkpoint"].endswith("step-000010")
    assert value["data"] == ["heldout.jsonl"]
    assert any(q["base"]["ids"] != q["tuned"]["ids"] for q in value["questions"])
    event = events.read(run.path)[-1]
    assert isinstance(event, events.Evaluated)
    assert event.path == str(report.path)
    assert event.summary["questions"] == 3
    assert set(event.summary["well-formed"]) == {"base", "tuned"}


def test_a_model_folder_is_evaluated_alone(
    run: runs.Run, model_folder: Path, conversations: list[Conversation]
) -> None:
    overrides = ["eval.max_new_tokens=4", "model.dtype=float32", "model.device=cpu"]
    report = run_evaluation(subjects.open_subject(str(model_folder), overrides=overrides), conversations[:3])
    assert report.arms == ("model",)
    assert report.path is not None
    assert report.path.parent == runs.root() / "evals"
    columns, rows = main_table(report.summary())
    assert columns == ("measure", "n", "model")
    assert {len(row) for row in rows} == {3}
    base = json.loads(run_evaluation(subjects.open_subject(run.id), conversations[:3]).path.read_text())  # type: ignore[union-attr]
    alone = json.loads(report.path.read_text())
    assert [q["model"]["ids"] for q in alone["questions"]] == [q["base"]["ids"] for q in base["questions"]]
    assert subjects.open_subject(run.id).system().effort == "low", "the run's recipe decides about the system message"


def test_one_factory_opens_runs_checkpoints_adapters_and_models(
    run: runs.Run, model_folder: Path, tmp_path: Path
) -> None:
    step = run.checkpoint(10)
    by_run, by_folder = subjects.open_subject(run.id), subjects.open_subject(str(step))
    assert (by_folder.run, by_folder.adapter) == (runs.Run(run.path.resolve()), step)
    assert by_folder.recipe == by_run.recipe
    assert by_folder.name == by_run.name
    alone = tmp_path / "alone"
    shutil.copytree(step, alone)
    overrides = ["model.dtype=float32", "model.device=cpu"]
    adapter = subjects.open_subject(str(alone), overrides=overrides)
    assert (adapter.run, adapter.adapter, adapter.recipe.model.path) == (None, alone, str(model_folder))
    model = subjects.open_subject(str(model_folder), overrides=overrides)
    assert (model.run, model.adapter) == (None, None)
    request = Request(prompt=(1, 2, 3), max_new_tokens=6, stop=frozenset())
    said = [subject.engine().submit(request) for subject in (by_run, adapter, model)]
    tuned, same, base = ([token.id for token in stream] for stream in said)
    assert tuned == same
    off = adapter.engine().complete([dataclasses.replace(request, adapter=BASE_WEIGHTS)])
    assert list(off[0].ids) == base
    with pytest.raises(UserError, match="no checkpoints"):
        subjects.open_subject(str(alone), checkpoint=10)
    config = json.loads((alone / "adapter_config.json").read_text())
    (alone / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match=r"(?s)which model.*model\.path"):
        subjects.open_subject(str(alone))
    named = subjects.open_subject(str(alone), overrides=[f"model.path={model_folder}"])
    assert named.recipe.model.path == str(model_folder)


def test_how_to_sample_comes_from_the_recipe(asked: list[Question], vocabulary: Vocabulary, tmp_path: Path) -> None:
    report = report_of(asked, tmp_path, limit=8, temperature=0.9, top_k=5, top_p=0.8, min_p=0.01, max_new_tokens=7)
    engine = perfect(asked, vocabulary)
    runner.ask(report, Arms(english_thinker(vocabulary), engine), ARMS, vocabulary)
    assert {request.sampling for request in engine.requests} == {Sampling(0.9, 5, 0.8, 0.01)}
    assert {request.max_new_tokens for request in engine.requests} == {7}
    assert len({(request.seed, request.number) for request in engine.requests}) == 8, "random numbers of their own"


def test_each_round_has_random_streams_of_its_own_and_both_arms_share_them(
    asked: list[Question], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """The seed of a round is the seed of the recipe plus the number of questions before the round."""
    report = report_of(asked, tmp_path, limit=10, seed=70, temperature=1.0)
    base, tuned = english_thinker(vocabulary), perfect(asked, vocabulary)
    runner.ask(report, Arms(base, tuned), ARMS, vocabulary)
    streams = [(request.seed, request.number) for request in tuned.requests]
    assert streams == [(70 + 4 * (place // 4), place % 4) for place in range(10)]
    assert [(request.seed, request.number) for request in base.requests] == streams


def test_subjects_that_do_not_exist_are_explained(run: runs.Run, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run and no model 'nosuch'"):
        subjects.open_subject("nosuch")
    with pytest.raises(UserError, match=r"(?s)step 7.*there are: 10"):
        subjects.open_subject(run.id, checkpoint=7)
    with pytest.raises(UserError, match="no checkpoints"):
        subjects.open_subject(str(model_folder), checkpoint=7)
    assert subjects.open_subject("last", checkpoint=10).adapter == run.checkpoint(10)
    assert subjects.open_subject(str(run.path)).name == f"{run.id} step-000010"


def test_answers_are_kept_as_they_come(
    run: runs.Run, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that fails in the middle of a round loses none of the answers that it gave."""
    from ossia.evaluate import runner

    subject, graded = subjects.open_subject(run.id), runner.grade
    given: list[int] = []

    def grade(*arguments: Any) -> Any:
        if len(given) == 3:
            raise RuntimeError("the machine is on fire")
        given.append(1)
        return graded(*arguments)

    monkeypatch.setattr(runner, "grade", grade)
    with pytest.raises(RuntimeError, match="on fire"):
        run_evaluation(subject, conversations[:4], vs_base=False)
    (journal,) = (run.path / "evals").glob("*.answers.jsonl")
    assert len([json.loads(line)["messages"] for line in journal.read_text().splitlines()]) == 3


def test_a_report_that_cannot_be_written_is_noticed_before_anything_is_asked(
    run: runs.Run, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects.Subject, "engine", lambda *_, **__: pytest.fail("a model was loaded"))
    (run.path / "evals").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="report cannot be written"):
        run_evaluation(subjects.open_subject(run.id), conversations[:3])
