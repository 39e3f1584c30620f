"""A fault in somebody's conversation: what, where in the row, and what to do.

Collected, not raised, so that one bad row does not hide the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ossia.errors import UserError

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """An error means that the row cannot be used as it is; a warning that somebody should look at it."""

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
