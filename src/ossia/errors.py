"""Exceptions with messages for users, and problems in the rows of data sets.

The exceptions, with the exit code of the command line in brackets:

    OssiaError            the run failed                                        [1]
      UserError           the user's input is wrong                             [2]
      DoesNotFitError     the machine has too little memory or disk space       [3]

Every error states the fault, its place (file, row, key), the reason and a remedy. `assert` is for programming errors,
and these exceptions are for users. Faults in the rows of a data set are `Problem`s. They are collected and not raised,
so that one faulty row does not hide the next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal


class OssiaError(Exception):
    """An expected failure. It is printed as a short message without a traceback; the exit code is `exit_code`."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, do: str | None = None) -> None:
        """
        Args:
            what: one sentence without a final full stop.
            where: the place, such as "data.jsonl:17" or "recipe.yaml:4 train.steps".
            why: the cause or the consequence, unless it is obvious.
            do: the remedy, preferably a command.
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
    """The machine has too little memory or disk space for the requested work."""

    exit_code = 3


Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault in a row of a data set."""

    level: Level
    """error: the row cannot be used unchanged. warning: the row is usable, but a person should look at it."""
    code: str
    """A fixed identifier of the kind of fault, such as `unknown-role`, for counts and filters."""
    what: str
    """The fault in words."""
    do: str = ""
    """The remedy."""
    path: str = ""
    """Place in the row, such as `messages[2].tool_calls[0].function.arguments`."""
    file: str = ""
    line: int = 0
    """Line of the file, or number of the item if the file has no lines. Counted from 1; 0 if there is none."""

    @property
    def where(self) -> str:
        """The place of the fault, such as `data.jsonl:17 messages[2].role`; empty if unknown."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place} {self.path}".strip()

    def to_error(self) -> UserError:
        """Return the problem as an exception."""
        return UserError(self.what, where=self.where or None, do=self.do or None)

    def __str__(self) -> str:
        place = self.where or "all rows"
        return f"{place}: {self.level}: {self.what}" + (f" ({self.do})" if self.do else "") + f" [{self.code}]"


OnProblem = Callable[[Problem], None]
"""A function that is called with each problem."""


def raise_errors(problem: Problem) -> None:
    """Raise an error and ignore a warning. An `OnProblem` for callers that cannot continue after an error.

    Raises:
        UserError: the problem is an error.
    """
    if problem.level == "error":
        raise problem.to_error()


_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")
# Marks that reverse the direction of text and so can disguise the content of a line.
_TURNING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE |= {code: f"[U+{code:04X}]" for code in _TURNING}


def harmless(text: str) -> str:
    """Return the text with visible characters in place of control characters.

    Foreign data must not control the terminal. Newlines and tabs stay unchanged.
    """
    return text.translate(_VISIBLE)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return the known word closest to `word`, or None if none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else None
