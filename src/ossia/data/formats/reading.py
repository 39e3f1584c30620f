"""What a format makes of a row, before it becomes a conversation: chat messages that know their place in the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ossia.config import Format
from ossia.data.formats.dialects import as_chat
from ossia.data.loose_json import loads
from ossia.errors import OnProblem
from ossia.harmony.conversation import Message
from ossia.harmony.from_openai import THOUGHT_KEYS, text_of

JsonRow = Mapping[str, Any]
SYSTEM_KEYS = ("system", "system_prompt")
_SWITCHES = frozenset({"", "on", "off", "true", "false", "none", "low", "medium", "high"})
"""What a column such as `reasoning` says of the mode that an answer was made in; no thoughts."""


@dataclass(slots=True)
class Reading:
    """A row as OpenAI's chat messages."""

    messages: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """Place of each message in the row's own JSON, such as `conversations[3].value`."""
    made: set[str] = field(default_factory=set)
    """Those places where the row has another form than a chat message, so that no `.content` continues them."""
    tools: object = None
    """As in a chat request, or its JSON text."""
    tools_path: str = "tools"
    tool_paths: list[str] = field(default_factory=list)
    """Place of each tool, where that is not `tools_path[i]`."""
    prompt: int = 0
    """How many messages are the prompt, which the alternatives of a preference pair share."""
    rejected: Reading | None = None
    """Of a preference pair: the worse alternative to the messages after the prompt."""
    score: float | None = None
    """Of several answers to the prompt: the worth of the one in `messages`."""
    others: list[tuple[Reading, float]] = field(default_factory=list)
    """Of several answers to the prompt: the others, each with its worth."""
    effort: object = None
    effort_path: str = "reasoning_effort"
    response_format: object = None
    """As in a chat request: {"type": "json_schema", "json_schema": {...}}."""
    response_format_path: str = "response_format"
    used: set[str] = field(default_factory=set)
    """Keys of the row that were used in this row, beyond those that the format always takes."""
    literal: tuple[Message, ...] | None = None
    """Harmony messages, system message included, in place of all the above."""

    def add(self, path: str, role: str, content: object, **fields: Any) -> None:
        """Append a chat message made of something else. Fields that are None are left out."""
        given = {key: value for key, value in fields.items() if value is not None}
        made = as_chat({"role": role, "content": content, **given})
        self.messages += made
        self.paths += [path] * len(made)
        self.made.add(path)

    def extend(self, messages: list[Any], path: str) -> None:
        """Append a list that stands in the row as it is."""
        for index, message in enumerate(messages):
            self.take(message, f"{path}[{index}]")

    def take(self, message: Any, path: str) -> None:
        """Append a message that stands in the row."""
        made = as_chat(message)
        self.messages += made
        self.paths += [path] * len(made)
        if isinstance(message, Mapping) and any(one.get("content") is not message.get("content") for one in made):
            self.made.add(path)  # of Anthropic's parts

    def given(self) -> None:
        """What was read so far is a prompt: its assistant messages are context, unless they have a weight."""
        for index, message in enumerate(self.messages):
            if isinstance(message, Mapping) and message.get("role") == "assistant" and message.get("weight") is None:
                self.messages[index] = {**message, "weight": 0}
        self.prompt = len(self.messages)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A format by name: whether a row is of it, and how it is read."""

    name: Format
    matches: Callable[[JsonRow], bool]
    read: Callable[[JsonRow, OnProblem], Reading]
    """Faults of parts go to the report; raises Misfit where nothing can be made of the row."""
    keys: frozenset[str]
    """Keys of the row that `read` takes. Every other stays with the conversation as `extra`."""


class Misfit(Exception):  # noqa: N818
    """The row has not the shape of the format. The message ends the sentence "Not a row of the format x: "."""


def listed(value: object, path: str) -> list[Any]:
    """A list, or the JSON text of one as CSV files and some data sets have it.

    Raises:
        Misfit: it is neither.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = loads(value)
        except ValueError as error:
            raise Misfit(f"`{path}` is not a list of messages: {error}") from error
    if not isinstance(value, list):
        raise Misfit(f"`{path}` is not a list of messages")
    return value


def add_system(reading: Reading, row: JsonRow, first: object = None) -> None:
    """Instructions from a column `system` or `system_prompt`, unless the `first` message repeats them."""
    known = first.get("content") if isinstance(first, Mapping) and first.get("role") in ("system", "developer") else ""
    said = text_of(known) or ""
    for key in SYSTEM_KEYS:
        if text := row.get(key):
            reading.used.add(key)
            if not isinstance(text, str) or text.strip() not in said:
                reading.add(key, "system", text)
            return


def row_thought(reading: Reading, row: JsonRow) -> str | None:
    """The thought of a row that has it in a column of its own. A switch such as `reasoning: on` is none."""
    for key in THOUGHT_KEYS:
        if is_thought(row.get(key)):
            reading.used.add(key)
            return str(row[key])
    return None


def is_thought(value: object) -> bool:
    """Whether a column with a thought's name holds one."""
    return isinstance(value, str) and value.strip().lower() not in _SWITCHES
