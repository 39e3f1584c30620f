"""The choices that turn rows into training examples. Plain data; the recipe's section `data` maps onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ossia.harmony.conversation import DEFAULT_IDENTITY, DEFAULT_KNOWLEDGE_CUTOFF, Effort, SystemSettings
from ossia.harmony.render import HeaderOrder

Format = Literal[
    "auto",
    "openai",
    "openai-responses",
    "harmony",
    "multilingual-thinking",
    "prompt-completion",
    "alpaca",
    "sharegpt",
    "llama-factory",
    "apigen-mt",
    "hermes",
    "xlam",
    "glaive",
    "openthoughts",
    "openr1",
    "openai-preference",
    "trl-preference",
]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How rows are read and rendered."""

    format: Format = "auto"
    """Row format; auto recognises it from the keys of each row."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of the row -> key of the format, for rows whose keys have names of their own."""
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
    builtin_tools: tuple[str, ...] = ()
    """Built-in tools announced in every system message: browser, python."""
    channel_weights: Mapping[str, float] = field(default_factory=dict)
    """Channel -> factor on the loss of its messages; 1 for channels that are not named."""
    order: HeaderOrder = "channel-first"
    """Order of the assistant's headers, in targets and in context alike."""
    strict: bool = False
    """Raise at the first bad row instead of leaving it out and going on."""

    def system(
        self, effort: Effort | None = None, identity: str | None = None, date: str | None = None
    ) -> SystemSettings:
        """The system message for a row, with what the row itself says taking precedence."""
        return SystemSettings(
            identity=identity or self.identity,
            knowledge_cutoff=self.knowledge_cutoff,
            date=self.date if date is None else date,
            effort=effort or self.effort,
        )


DEFAULTS = DataSettings()
