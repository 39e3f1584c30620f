"""Kinds of messages, and two functions of them: the context of a turn, and the ranges of the assistant's turns.

The kinds of a conversation are a string with one letter per message. A string is compact in shards, and `rfind`
searches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum, unique

from ossia.harmony.conversation import Message


@unique
class MessageKind(StrEnum):
    """The kind of a message in its conversation. HIDDEN: on channel analysis, not its usual channel."""

    LASTING = "s"
    """A system or developer message. It stays when old turns are removed."""
    USER = "u"
    RESULT = "t"
    """A result of a tool."""
    THOUGHT = "a"
    """A message of the assistant on channel analysis, without a recipient."""
    PREAMBLE = "p"
    """Text for the user that does not end the turn."""
    CALL = "c"
    ANSWER = "f"
    ADDRESSED_ANSWER = "F"
    """A message of the assistant on channel final with a recipient."""
    HIDDEN_CALL = "A"
    HIDDEN_RESULT = "T"
    HIDDEN_USER = "U"
    """A message of user, developer or system on channel analysis."""


# The functions below run for every message. Names of the module are read several times as fast as enum members.
_LASTING, _USER, _RESULT, _THOUGHT, _PREAMBLE, _CALL, _ANSWER, _ADDRESSED, *_HIDDEN = MessageKind
_HIDDEN_CALL, _HIDDEN_RESULT, _HIDDEN_USER = _HIDDEN


def _letters(*kinds: MessageKind) -> frozenset[str]:
    """Return the letters of some kinds as plain strings. Their lookup is twice as fast as that of enum members."""
    return frozenset(kind.value for kind in kinds)


FORGOTTEN = _letters(_THOUGHT, _HIDDEN_CALL, _HIDDEN_RESULT, _HIDDEN_USER)
"""Kinds on channel analysis. They leave the context after the next answer."""
ASSISTANT = _letters(_THOUGHT, _PREAMBLE, _CALL, _HIDDEN_CALL, _ANSWER, _ADDRESSED)
"""Kinds that the model writes."""
THINKING = _letters(_THOUGHT, _HIDDEN_CALL)
"""Kinds of the chain of thought."""
CALLS = _letters(_CALL, _HIDDEN_CALL)
"""Kinds of calls of tools."""
GOES_ON = _letters(_THOUGHT, _PREAMBLE, _ANSWER)
"""Kinds that the model closes with `<|end|>`. If its turn continues, it writes the next `<|start|>assistant`."""
UNFINISHED = _letters(_THOUGHT, _PREAMBLE)
"""Kinds that cannot end a turn. An answer or a call must follow."""
ENDS_TURN = _letters(_ANSWER, _ADDRESSED)
"""Kinds that end the assistant's turn."""
TAKES_FLOOR = _letters(_USER, _LASTING, _HIDDEN_USER)
"""Kinds of messages that come neither from the model nor from its tools."""


def message_kind(message: Message) -> MessageKind:
    """Return the kind of one message."""
    role, hidden = message.role, message.channel == "analysis"
    if role == "assistant":
        if message.channel == "final":
            return _ANSWER if message.recipient is None else _ADDRESSED
        if message.recipient is not None:
            return _HIDDEN_CALL if hidden else _CALL
        return _THOUGHT if hidden else _PREAMBLE
    if role == "tool":
        return _HIDDEN_RESULT if hidden else _RESULT
    if hidden:
        return _HIDDEN_USER
    return _USER if role == "user" else _LASTING


def kinds_of(messages: Sequence[Message]) -> str:
    """Return the kinds of the messages as a string of letters."""
    return "".join(map(message_kind, messages))


def context(kinds: str, stop: int, cut: int = 0) -> list[int]:
    """Return the indices of the messages before `stop` that are in the context.

    Messages on channel analysis before the last answer are left out. `ossia.harmony.without_old_thoughts` has the same
    rule for messages.

    Args:
        kinds: the kinds of all messages of the conversation.
        stop: index of the first message after the context.
        cut: of the messages before this index only the lasting ones are in the context.
    """
    last = max(kinds.rfind(_ANSWER, 0, stop), kinds.rfind(_ADDRESSED, 0, stop))
    if cut:
        seen = (i for i in range(stop) if kinds[i] not in FORGOTTEN or i > last)
        return [i for i in seen if i >= cut or kinds[i] == _LASTING]
    return [i for i in range(stop) if i > last or kinds[i] not in FORGOTTEN]


def turns_of(kinds: str) -> list[tuple[int, int]]:
    """Return the assistant's turns as ranges (start, stop) of messages, from the kinds of a conversation.

    A turn ends with its answer, or before a message that comes neither from the assistant nor from a tool.
    """
    turns: list[tuple[int, int]] = []
    start = -1
    for index, kind in enumerate(kinds):
        if kind in TAKES_FLOOR:
            if start >= 0:
                turns.append((start, index))
            start = -1
            continue
        start = index if start < 0 else start
        if kind in ENDS_TURN:
            turns.append((start, index + 1))
            start = -1
    return turns if start < 0 else [*turns, (start, len(kinds))]
