"""Asks the base and the tuned model the questions, and writes their answers and verdicts to a file.

The base is the same model with the adapter switched off. So both answer the same prompts on the same weights with the
same settings. Questions are in shuffled order. In each round the base answers a batch, and the tuned model answers the
same batch. The file is written after each round. So a stopped evaluation has pairs of answers to a random part of the
questions.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ossia import events, files, runs
from ossia.config import EvalSection
from ossia.errors import UserError
from ossia.evaluate.language import code
from ossia.evaluate.report import EvaluationSummary, summarise
from ossia.evaluate.tasks import GradedAnswer, Question, grade, named_languages, questions
from ossia.generate.engine import BASE_WEIGHTS, Completion, Engine
from ossia.generate.subject import Subject, request_of
from ossia.harmony.conversation import Conversation
from ossia.harmony.tokenizer.vocabulary import Vocabulary

BASE, TUNED, MODEL = "base", "tuned", "model"
ROUND = 1
"""Batches per round."""

OnAnswers = Callable[[int], None]
"""Called with the number of answers since its last call."""


@dataclass
class Evaluation:
    """An evaluation, while it runs and afterwards."""

    subject: str
    """Name of the evaluated run, adapter or model (`Subject.name`)."""
    arms: tuple[str, ...]
    """The models that answer: base and tuned, tuned alone, or model."""
    questions: list[Question]
    """All questions to ask, in the order of asking."""
    settings: EvalSection
    answers: dict[str, dict[int, GradedAnswer]] = field(default_factory=dict)
    """Arm -> question number -> answer."""
    details: dict[str, Any] = field(default_factory=dict)
    """The origin of the answers: model, run, checkpoint, data files, engine and environment."""
    seconds: float = 0.0
    """Duration of asking."""
    path: Path | None = None
    """The report's file."""

    @property
    def asked(self) -> list[Question]:
        """The questions that every arm has answered, in the order of the data."""
        answered = [q for q in self.questions if all(q.number in self.answers.get(arm, {}) for arm in self.arms)]
        return sorted(answered, key=lambda question: question.number)

    @property
    def complete(self) -> bool:
        """Whether every arm has answered every question."""
        return len(self.asked) == len(self.questions)

    def summary(self) -> EvaluationSummary:
        """Return counts, intervals and differences over the questions that every arm has answered."""
        return summarise(self.asked, {arm: self.answers.get(arm, {}) for arm in self.arms})


def run_evaluation(
    subject: Subject,
    conversations: Sequence[Conversation],
    *,
    vs_base: bool = True,
    data: Sequence[str] = (),
    warnings: Sequence[str] = (),
    on_progress: OnAnswers | None = None,
) -> Evaluation:
    """Load the subject's model, ask it the questions and return the evaluation.

    The report is written to `evals/` in the run folder, or in the folder of all runs if the subject has no run. A run
    with answers gets the event `Evaluated`. Ctrl-C ends the evaluation early, and then the report is not `complete`.

    Args:
        subject: its recipe's section `eval` says how many questions and how to sample. A model folder has no base.
        data: names of the files, for the report.
        warnings: what a reader of the report should know, in sentences.

    Raises:
        UserError: there are no questions, or a question names a language that cannot be judged. See also
            `Subject.model`.
        DoesNotFitError: the GPU does not have enough memory.
    """
    settings, run, vocabulary = subject.recipe.eval, subject.run, subject.vocabulary()
    order = choose(questions(conversations, vocabulary, subject.recipe.data.header_order), settings)
    path = new_file((run.path if run else runs.root()) / "evals")
    _check_writable(path)
    engine = subject.engine(batch_size=settings.batch_size)
    arms: dict[str, str | None] = {MODEL: None}
    if subject.adapter is not None:
        arms = {BASE: BASE_WEIGHTS, TUNED: None} if vs_base else {TUNED: None}
    report = Evaluation(
        subject=subject.name,
        arms=tuple(arms),
        questions=order,
        settings=settings,
        details={
            "model": subject.recipe.model.path,
            "run": run.id if run else None,
            "checkpoint": str(subject.adapter) if subject.adapter else None,
            **engine.description(),
            "data": list(data),
            "warnings": list(warnings),
            "environment": runs.environment("eval"),
        },
        path=path,
    )
    ask(report, engine, arms, vocabulary, on_progress)
    if run is not None and report.asked:
        run.log().write(events.Evaluated(path=str(report.path), summary=report.summary().brief()))
    return report


def choose(everything: Sequence[Question], settings: EvalSection) -> list[Question]:
    """Return the questions to ask, at most `settings.limit`, as a random sample in random order (`settings.seed`).

    Raises:
        UserError: there are no questions, or a question names a language that cannot be judged.
    """
    if not everything:
        raise UserError("there is nothing to ask: no usable row in the data", do="ossia data check FILE")
    for language in named_languages(everything):
        code(language)
    count = min(settings.limit or len(everything), len(everything))
    return random.Random(settings.seed).sample(everything, count)


def ask(
    report: Evaluation,
    engine: Engine,
    arms: Mapping[str, str | None],
    vocabulary: Vocabulary,
    on_progress: OnAnswers | None = None,
) -> None:
    """Fill `report.answers` with each arm's answers. The report is saved after each round.

    Ctrl-C saves the report and returns.

    Args:
        arms: name of each arm -> the adapter that answers (`Request.adapter`).
    """
    settings, began = report.settings, time.monotonic()
    among = named_languages(report.questions)
    size = ROUND * settings.batch_size
    assert report.path is not None
    report.path.parent.mkdir(parents=True, exist_ok=True)
    journal = _Journal(report.path)
    try:
        for start in range(0, len(report.questions), size):
            part = report.questions[start : start + size]
            for arm, adapter in arms.items():
                given = report.answers.setdefault(arm, {})

                def hear(
                    index: int,
                    completion: Completion,
                    given: dict[int, GradedAnswer] = given,
                    part: list[Question] = part,
                    arm: str = arm,
                ) -> None:
                    number = part[index].number
                    given[number] = grade(part[index], completion, vocabulary, among)
                    journal.add(arm, number, given[number], vocabulary)
                    if on_progress is not None:
                        on_progress(1)

                # Prompts of different rounds must not have the same random streams.
                like = replace(request_of(settings, settings.seed + start), adapter=adapter)
                requests = [replace(like, prompt=q.prompt, number=number) for number, q in enumerate(part)]
                engine.complete(requests, hear)
            report.seconds = time.monotonic() - began
            save_evaluation(report, vocabulary)
    except BaseException as error:  # also after an error of the engine: what was answered is kept
        report.seconds = time.monotonic() - began
        save_evaluation(report, vocabulary)
        if not isinstance(error, KeyboardInterrupt):
            raise
    if report.complete:
        journal.remove()


class _Journal:
    """Every answer as it comes, in a file beside the report, which is written a round at a time.

    It stays where the process is killed or the disk is full, and goes when the report holds all that it holds.
    """

    def __init__(self, report: Path) -> None:
        self.path = report.with_suffix(".answers.jsonl")

    def add(self, arm: str, number: int, answer: GradedAnswer, vocabulary: Vocabulary) -> None:
        line = json.dumps({"arm": arm, "number": number, **_answer_json(answer, vocabulary)}, ensure_ascii=False)
        with files.naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _check_writable(path: Path) -> None:
    """Raise UserError where a report cannot be written, before anything is loaded and asked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"format": 1, "complete": False})
    except OSError as error:
        raise UserError(
            f"the report cannot be written ({error.strerror})",
            where=str(path),
            do="set OSSIA_RUNS to a folder that you may write to, or make the run's folder writable",
        ) from None


def save_evaluation(report: Evaluation, vocabulary: Vocabulary) -> None:
    """Write the report to its file, atomically.

    The file has the summary, and the prompt, completions and verdicts of every question that all arms have answered.
    """
    assert report.path is not None
    value = {
        "format": 1,
        "subject": report.subject,
        **report.details,
        "complete": report.complete,
        "asked": len(report.asked),
        "of": len(report.questions),
        "seconds": round(report.seconds, 1),
        "settings": report.settings.model_dump(),
        "summary": report.summary().to_json(),
        "questions": [_question_json(question, report, vocabulary) for question in report.asked],
    }
    files.write_json(report.path, value)


def _question_json(question: Question, report: Evaluation, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "number": question.number,
        "source": question.source,
        "kind": question.kind,
        "requested": question.requested,
        "language": question.language,
        "answer": question.answer,
        "prompt": vocabulary.decode(question.prompt),
        "expected": [{"channel": m.channel, "recipient": m.recipient, "content": m.content} for m in question.expected],
        **{arm: _answer_json(report.answers[arm][question.number], vocabulary) for arm in report.arms},
    }


def _answer_json(answer: GradedAnswer, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "verdicts": answer.verdicts,
        "thought_language": answer.thought_language,
        "thought_share": answer.thought_share,
        "final_language": answer.final_language,
        "finish": answer.completion.finish,
        "ids": list(answer.completion.ids),
        "raw": vocabulary.decode(answer.completion.ids),
        "messages": [asdict(message) for message in answer.messages],
    }


def new_file(folder: Path) -> Path:
    """Return a file name that no other evaluation has, not even one that started in the same second."""
    return folder / f"{time.strftime('%Y-%m-%d_%H%M%S')}_{secrets.token_hex(2)}.json"
