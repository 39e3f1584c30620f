"""What goes wrong, in words for people.

The tree (exit code of the command line in brackets):

* OssiaError            the run failed                                  [1]
  + UserError           the user's input is wrong                       [2]
  + DoesNotFitError     the machine cannot hold what was asked for      [3]

Every error says what is wrong, where (file, row, key), why it matters and what to do about it. `assert` is for
programmers; these are for people. Faults in the rows of somebody's data are `Problem`s, which are collected and not
raised, so that one bad row does not hide the next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal


class OssiaError(Exception):
    """An expected failure. Printed as a short message without a traceback; the process exits with `exit_code`."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, do: str | None = None) -> None:
        """
        Args:
            what: one sentence without a final full stop.
            where: the place, for example "data.jsonl:17" or "recipe.yaml:4 train.steps".
            why: the cause or the consequence, if it is not obvious.
            do: the remedy, preferably something to type.
        """
        super().__init__(what)
        self.what, self.where, self.why, self.do = what, where, why, do

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.do:
            lines.append(f"  try: {self.do}")
        return "\n".join(lines)


class UserError(OssiaError):
    """The input is wrong: a file, a row, a key, a flag."""

    exit_code = 2


class DoesNotFitError(OssiaError):
    """The machine has not got the memory or the disk space for what was asked."""

    exit_code = 3


Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault in a row. An error: the row cannot be used as it is. A warning: somebody should look at it."""

    level: Level
    code: str
    """A fixed word for the kind, such as `unknown-role`; to count and to filter by."""
    what: str
    do: str = ""
    path: str = ""
    """Place in the row, as in `messages[2].tool_calls[0].function.arguments`."""
    file: str = ""
    line: int = 0
    """Line of the file, or number of the item where a file has no lines. From 1; 0 where there is none."""

    @property
    def where(self) -> str:
        """As in `data.jsonl:17 messages[2].role`."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} {self.path}".strip()

    def to_error(self) -> UserError:
        """The same as an exception."""
        return UserError(self.what, where=self.where or None, do=self.do or None)

    def __str__(self) -> str:
        place = self.where or "all rows"
        return f"{place}: {self.level}: {self.what}" + (f" ({self.do})" if self.do else "") + f" [{self.code}]"


OnProblem = Callable[[Problem], None]


def raise_errors(problem: Problem) -> None:
    """An `OnProblem` for callers that cannot go on: errors are raised, warnings ignored."""
    if problem.level == "error":
        raise problem.to_error()


_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")
# Marks that turn the direction of text around, and with it what a line seems to say.
_TURNING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE |= {code: f"[U+{code:04X}]" for code in _TURNING}


def harmless(text: str) -> str:
    """Text with its control characters made visible: other people's data must not steer the terminal."""
    return text.translate(_VISIBLE)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return the known word closest to `word`, or None when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
