"""Make the data of the cross-lingual reasoning example: short problems with known answers in five languages.

The question and the answer are in one language. The developer message requests the language of the thought. Rows have
the schema of HuggingFaceH4/Multilingual-Thinking and four more columns. `answer` is a string to look for in `final`.
`language` is the language of the question. The others are `kind` (of problem) and `reasoning_effort`.

* `pretraining_rows` are for the pre-training of a tiny base model. The thought is in English, whatever is requested.
* `training_rows` are for tuning. The thought is in the requested language.
* `heldout_rows` are for measuring. Their operands occur in neither of the other two (`is_heldout`).

`python generate.py` writes train.jsonl and heldout.jsonl beside this file. The same seed gives the same bytes. The
script needs only Python.
"""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phrases import ITEMS, LANGUAGES, NAMES, STEPS, TASKS

Row = dict[str, Any]

DEVELOPER = "Solve the problem step by step."
KINDS = tuple(TASKS)
TRAIN_ROWS, HELDOUT_ROWS = 1200, 325  # 13 requests for each of 25 pairs of kind and language


@dataclass(frozen=True)
class Problem:
    """A problem without its language. Its methods write it in each of `LANGUAGES`.

    `a` and `b` are the operands. For `date` they are a day of May and a number of days. `name` and `other` are indices
    into `NAMES`, `item` into `ITEMS`, and `variant` into the wordings of `TASKS`.
    """

    kind: str
    a: int
    b: int
    variant: int
    name: int
    other: int
    item: int

    @property
    def result(self) -> int:
        """The solution: a number, or for `compare` the index in `NAMES` of the person who has more."""
        if self.kind in ("add", "date"):
            return self.a + self.b
        if self.kind == "subtract":
            return self.a - self.b
        if self.kind == "weeks":
            return 7 * self.a + self.b
        return self.name if self.a > self.b else self.other

    @property
    def answer(self) -> str:
        """The solution as a string, which is the same in every language: digits or a name."""
        return NAMES[self.result] if self.kind == "compare" else str(self.result)

    def _fill(self, template: str, language: str) -> str:
        return template.format(
            a=self.a,
            b=self.b,
            c=self.answer,
            name=NAMES[self.name],
            other=NAMES[self.other],
            item=ITEMS[language][self.item],
        )

    def question(self, language: str) -> str:
        """Return the question in `language`."""
        return self._fill(TASKS[self.kind][language][self.variant][0], language)

    def final(self, language: str) -> str:
        """Return the answer as a sentence in `language`."""
        return self._fill(TASKS[self.kind][language][self.variant][1], language)

    def working(self, language: str) -> str:
        """Return the steps from the question to the answer in `language`. The last step is the answer."""
        step = STEPS[language]
        if self.kind == "weeks":
            weeks = step["weeks"].format(a=self.a, d=7 * self.a)
            steps = [weeks, *_column_steps("add", 7 * self.a, self.b, step)]
        elif self.kind == "compare":
            opening = step["compare"].format(a=self.a, b=self.b, name=NAMES[self.name], other=NAMES[self.other])
            steps = [opening, *_comparison_steps(self.a, self.b, step)]
        else:
            steps = _column_steps("subtract" if self.kind == "subtract" else "add", self.a, self.b, step)
        return " ".join([*steps, step["answer"].format(c=self.answer)])


def _column_steps(kind: str, a: int, b: int, step: dict[str, str]) -> list[str]:
    """Return the steps of adding or subtracting two numbers below 100 digit by digit.

    A subtraction must not need to borrow.
    """
    (a_tens, a_ones), (b_tens, b_ones) = divmod(a, 10), divmod(b, 10)
    if kind == "subtract":
        ones, tens = f"{a_ones}-{b_ones}={a_ones - b_ones}", f"{a_tens}-{b_tens}={a_tens - b_tens}"
    else:
        carry = (a_ones + b_ones) // 10
        ones = f"{a_ones}+{b_ones}={a_ones + b_ones}"
        tens = f"{a_tens}+{b_tens}{'+1' if carry else ''}={a_tens + b_tens + carry}"
    return [step[kind].format(a=a, b=b), step["ones"].format(sum=ones), step["tens"].format(sum=tens)]


def _comparison_steps(a: int, b: int, step: dict[str, str]) -> list[str]:
    """Return the steps of comparing two different numbers below 100: the tens, and if they are equal, the ones."""
    (a_tens, a_ones), (b_tens, b_ones) = divmod(a, 10), divmod(b, 10)
    if a_tens != b_tens:
        return [step["tens"].format(sum=f"{a_tens}{'<>'[a_tens > b_tens]}{b_tens}")]
    ones = f"{a_ones}{'<>'[a_ones > b_ones]}{b_ones}"
    return [step["tens"].format(sum=f"{a_tens}={b_tens}"), step["ones"].format(sum=ones)]


def is_heldout(kind: str, a: int, b: int) -> bool:
    """Return whether the operands are kept for measuring. About one pair in six is.

    For `add` and `compare`, both orders of a pair give the same result.
    """
    if kind in ("add", "compare"):
        a, b = min(a, b), max(a, b)
    return zlib.crc32(f"{kind} {a} {b}".encode()) % 6 == 0


def _operands(kind: str, rng: random.Random) -> tuple[int, int]:
    if kind == "date":
        return rng.randint(2, 20), rng.randint(2, 9)
    if kind == "weeks":
        return rng.randint(2, 9), rng.randint(2, 9)
    if kind == "compare":
        a = rng.randint(11, 49)
        near = rng.random() < 0.3  # equal tens: without this they would be too rare to learn
        b = 10 * (a // 10) + rng.randrange(10) if near else rng.randint(11, 49)
        return (a, b) if a != b else _operands(kind, rng)
    if kind == "add":
        return rng.randint(11, 34), rng.randint(11, 34)
    a, b = rng.randint(21, 69), rng.randint(11, 59)
    return (a, b) if a // 10 > b // 10 and a % 10 >= b % 10 else _operands(kind, rng)


def _problem(kind: str, rng: random.Random, heldout: bool) -> Problem:
    while True:
        a, b = _operands(kind, rng)
        if is_heldout(kind, a, b) == heldout:
            break
    name, other = rng.sample(range(len(NAMES)), 2)
    return Problem(kind, a, b, rng.randrange(2), name, other, rng.randrange(len(ITEMS["English"])))


def make_row(problem: Problem, language: str, requested: str, *, thought: str | None) -> Row:
    """Return one row.

    Args:
        problem: the problem of the row.
        language: the language of the question and of the answer.
        requested: the language of the thought that the developer message asks for.
        thought: the actual language of the thought. None gives a row of low effort without a thought: the answer starts
            with the working, in the requested language.
    """
    user, analysis, final = problem.question(language), "", problem.final(language)
    if thought is None:
        final = f"{problem.working(requested)} {final}"
    else:
        analysis = problem.working(thought)
    return {
        "reasoning_language": requested,
        "developer": DEVELOPER,
        "user": user,
        "analysis": analysis,
        "final": final,
        "messages": [
            {"role": "system", "content": f"reasoning language: {requested}\n\n{DEVELOPER}", "thinking": None},
            {"role": "user", "content": user, "thinking": None},
            {"role": "assistant", "content": final, "thinking": analysis or None},
        ],
        "answer": problem.answer,
        "language": language,
        "kind": problem.kind,
        "reasoning_effort": "low" if thought is None else "medium",
    }


def pretraining_rows(count: int, seed: int, *, low_effort: float = 0.5) -> list[Row]:
    """Return rows for a base model. Thoughts are English and the requested language is random.

    So the base model learns to ignore the request for the thought. A share `low_effort` of the rows has no thought.
    Their answers contain the working, in the requested language. From them the base model learns these sentences in
    every language, and the meaning of a requested language.
    """
    rng = random.Random(f"pretraining {seed}")
    rows = []
    for _ in range(count):
        problem = _problem(rng.choice(KINDS), rng, heldout=False)
        language, requested = rng.choice(LANGUAGES), rng.choice(LANGUAGES)
        rows.append(make_row(problem, language, requested, thought=None if rng.random() < low_effort else "English"))
    return rows


def training_rows(count: int, seed: int) -> list[Row]:
    """Return rows for tuning, with thoughts in the requested language.

    Kinds and pairs of languages are equally common. No question comes twice with the same request.
    """
    rng = random.Random(f"training {seed}")
    rows: dict[tuple[str, str], Row] = {}
    while len(rows) < count:
        row = _balanced_row(len(rows), rng, LANGUAGES, heldout=False)
        rows.setdefault((row["user"], row["reasoning_language"]), row)
    return list(rows.values())


def heldout_rows(count: int, seed: int) -> list[Row]:
    """Return rows for measuring, on operands that neither `pretraining_rows` nor `training_rows` use.

    No question comes twice. Questions are equally common in all languages. English is requested a third as often as
    each of the other languages.
    """
    rng = random.Random(f"heldout {seed}")
    requests = 3 * LANGUAGES[1:] + LANGUAGES[:1]
    rows: dict[str, Row] = {}
    while len(rows) < count:
        row = _balanced_row(len(rows), rng, requests, heldout=True)
        rows.setdefault(row["user"], row)
    return list(rows.values())


def _balanced_row(i: int, rng: random.Random, requests: tuple[str, ...], *, heldout: bool) -> Row:
    """Return row number `i`. The kind changes fastest, then the language, then the request."""
    i, kind = divmod(i, len(KINDS))
    i, language = divmod(i, len(LANGUAGES))
    requested = requests[i % len(requests)]
    return make_row(_problem(KINDS[kind], rng, heldout), LANGUAGES[language], requested, thought=requested)


def main() -> None:
    """Write train.jsonl and heldout.jsonl beside this file."""
    folder = Path(__file__).parent
    for name, rows in (("train", training_rows(TRAIN_ROWS, 1)), ("heldout", heldout_rows(HELDOUT_ROWS, 1))):
        if name == "train":
            random.Random(0).shuffle(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
