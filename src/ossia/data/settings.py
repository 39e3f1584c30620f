"""The choices that turn rows into training examples. Plain data; the recipe's section `data` maps onto it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ossia.harmony.conversation import DEFAULT_IDENTITY, DEFAULT_KNOWLEDGE_CUTOFF, Effort, SystemSettings
from ossia.harmony.render import HeaderOrder

Format = Literal["auto", "openai", "multilingual-thinking", "prompt-completion"]


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How rows are read and rendered."""

    format: Format = "auto"
    """Row format; auto recognises it from the keys of each row."""
    turns: Literal["every", "last"] = "every"
    """Whether every assistant turn becomes an example, or only the last one of each conversation."""
    max_tokens: int = 4096
    """Longest example in tokens."""
    effort: Effort = "medium"
    """Reasoning effort in the system message of rows that name none."""
    date: str | None = None
    """Current date in the system message; None leaves it out, so that data do not change from day to day."""
    identity: str = DEFAULT_IDENTITY
    """First line of the system message."""
    knowledge_cutoff: str | None = DEFAULT_KNOWLEDGE_CUTOFF
    order: HeaderOrder = "channel-first"
    """Order of the assistant's headers, in targets and in context alike."""
    strict: bool = False
    """Raise at the first bad row instead of leaving it out and going on."""

    def system(self, effort: Effort | None = None, identity: str | None = None) -> SystemSettings:
        """The system message for a row, with what the row itself says taking precedence."""
        return SystemSettings(
            identity=self.identity if identity is None else identity,
            knowledge_cutoff=self.knowledge_cutoff,
            date=self.date,
            effort=effort or self.effort,
        )


DEFAULTS = DataSettings()
