"""The result of reading a row in its format: chat messages with their places in the row, before their conversion."""

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
"""A row as an object."""
SYSTEM_KEYS = ("system", "system_prompt")
"""Columns with instructions."""
_SWITCHES = frozenset({"", "on", "off", "true", "false", "none", "low", "medium", "high"})
"""Values of a column such as `reasoning` that give the mode of an answer. They are not thoughts."""


@dataclass(slots=True)
class Reading:
    """A row as OpenAI's chat messages."""

    messages: list[Any] = field(default_factory=list)
    """The prompt, and the trained answer if there are several."""
    paths: list[str] = field(default_factory=list)
    """Place of each message in the row's own JSON, such as `conversations[3].value`."""
    made: set[str] = field(default_factory=set)
    """The places at which the row does not have a chat message. Paths such as `.content` do not exist below them."""
    tools: object = None
    """The tools as in a chat request, or their JSON text."""
    tools_path: str = "tools"
    tool_paths: list[str] = field(default_factory=list)
    """Place of each tool, if it is not `tools_path[i]`."""
    prompt: int = 0
    """The number of messages that are the prompt. The alternatives of a row share it."""
    rejected: Reading | None = None
    """The rejected alternative of a preference pair, without the prompt."""
    score: float | None = None
    """The score of the answer in `messages`, if the row has several answers."""
    others: list[tuple[Reading, float]] = field(default_factory=list)
    """The other answers of a row with several, each without the prompt and with its score."""
    effort: object = None
    effort_path: str = "reasoning_effort"
    response_format: object = None
    """The response format as in a chat request: {"type": "json_schema", "json_schema": {...}}."""
    response_format_path: str = "response_format"
    used: set[str] = field(default_factory=set)
    """Keys that were used in this row, in addition to `RowFormat.keys`."""
    literal: tuple[Message, ...] | None = None
    """Harmony messages, system message included, that replace all other fields."""

    def add(self, path: str, role: str, content: object, **fields: Any) -> None:
        """Append a chat message that is built from other values of the row. Fields that are None are left out."""
        given = {key: value for key, value in fields.items() if value is not None}
        made = as_chat({"role": role, "content": content, **given})
        self.messages += made
        self.paths += [path] * len(made)
        self.made.add(path)

    def extend(self, messages: list[Any], path: str) -> None:
        """Append the messages of a list in the row."""
        for index, message in enumerate(messages):
            self.take(message, f"{path}[{index}]")

    def take(self, message: Any, path: str) -> None:
        """Append a message that is in the row."""
        made = as_chat(message)
        self.messages += made
        self.paths += [path] * len(made)
        if isinstance(message, Mapping) and any(one.get("content") is not message.get("content") for one in made):
            self.made.add(path)  # converted from Anthropic's parts

    def given(self) -> None:
        """Mark the messages read so far as the prompt. Its assistant messages get weight 0, unless they have one."""
        for index, message in enumerate(self.messages):
            if isinstance(message, Mapping) and message.get("role") == "assistant" and message.get("weight") is None:
                self.messages[index] = {**message, "weight": 0}
        self.prompt = len(self.messages)


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A row format: its name, its recognition and its reader."""

    name: Format
    matches: Callable[[JsonRow], bool]
    """Returns whether a row has the format."""
    read: Callable[[JsonRow, OnProblem], Reading]
    """Reads a row. Faults of parts are reported. Raises Misfit if the row cannot be read at all."""
    keys: frozenset[str]
    """Keys of the row that `read` uses. The others stay with the conversation as `extra`."""


class Misfit(Exception):  # noqa: N818
    """The row does not have the form of its format. The message is the end of "Not a row of the format x: ..."."""


def listed(value: object, path: str) -> list[Any]:
    """Return a list from a list or its JSON text, as CSV files and some data sets have it.

    Raises:
        Misfit: the value is neither.
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
    """Append the instructions of a column `system` or `system_prompt`, unless the message `first` contains them."""
    known = first.get("content") if isinstance(first, Mapping) and first.get("role") in ("system", "developer") else ""
    said = text_of(known) or ""
    for key in SYSTEM_KEYS:
        if text := row.get(key):
            reading.used.add(key)
            if not isinstance(text, str) or text.strip() not in said:
                reading.add(key, "system", text)
            return


def row_thought(reading: Reading, row: JsonRow) -> str | None:
    """Return the thought of a row from its own column, or None. A switch such as `reasoning: on` is not a thought."""
    for key in THOUGHT_KEYS:
        if is_thought(row.get(key)):
            reading.used.add(key)
            return str(row[key])
    return None


def is_thought(value: object) -> bool:
    """Return whether the value of a column such as `reasoning` is a thought."""
    return isinstance(value, str) and value.strip().lower() not in _SWITCHES
