"""Kinds of messages, and what follows from them: what the model still sees, and where the assistant's turns are.

The kinds of a conversation are a string with one letter per message: compact in shards, and searched with `rfind`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum, unique

from ossia.harmony.conversation import Message


@unique
class MessageKind(StrEnum):
    """What a message is to its conversation. HIDDEN: on channel analysis, which is not the kind's own."""

    LASTING = "s"
    """A system or developer message, which stays when old turns go."""
    USER = "u"
    RESULT = "t"
    """What a tool gave back."""
    THOUGHT = "a"
    PREAMBLE = "p"
    """Text for the user that does not end the turn."""
    CALL = "c"
    ANSWER = "f"
    ADDRESSED_ANSWER = "F"
    """On channel final, with a recipient."""
    HIDDEN_CALL = "A"
    HIDDEN_RESULT = "T"
    HIDDEN_USER = "U"
    """A message of a person, the developer or the system on channel analysis."""


# Names of the module are read several times as fast as members of the class, and these functions see every message.
_LASTING, _USER, _RESULT, _THOUGHT, _PREAMBLE, _CALL, _ANSWER, _ADDRESSED, *_HIDDEN = MessageKind
_HIDDEN_CALL, _HIDDEN_RESULT, _HIDDEN_USER = _HIDDEN


def _letters(*kinds: MessageKind) -> frozenset[str]:
    """A set to look letters up in; plain ones are found twice as fast as members."""
    return frozenset(kind.value for kind in kinds)


FORGOTTEN = _letters(_THOUGHT, _HIDDEN_CALL, _HIDDEN_RESULT, _HIDDEN_USER)
"""On channel analysis: gone once an answer is given."""
ASSISTANT = _letters(_THOUGHT, _PREAMBLE, _CALL, _HIDDEN_CALL, _ANSWER, _ADDRESSED)
"""What the model writes."""
THINKING = _letters(_THOUGHT, _HIDDEN_CALL)
"""The chain of thought."""
CALLS = _letters(_CALL, _HIDDEN_CALL)
"""Calls of tools."""
GOES_ON = _letters(_THOUGHT, _PREAMBLE, _ANSWER)
"""What the model closes with `<|end|>`, after which it writes the next `<|start|>assistant` itself."""
UNFINISHED = _letters(_THOUGHT, _PREAMBLE)
"""What the model writes in a turn that needs more behind it: an answer or a call."""
ENDS_TURN = _letters(_ANSWER, _ADDRESSED)
"""What ends the assistant's turn."""
TAKES_FLOOR = _letters(_USER, _LASTING, _HIDDEN_USER)
"""What somebody other than the model and its tools says."""


def message_kind(message: Message) -> MessageKind:
    """The kind of one message."""
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
    """The letters of the messages' kinds."""
    return "".join(map(message_kind, messages))


def context(kinds: str, stop: int, cut: int = 0) -> list[int]:
    """Indices of the messages before `stop` that the model still sees: no thoughts from before the last answer.

    This is `ossia.harmony.without_old_thoughts` on kinds. Of the messages before `cut` only the lasting ones stay.
    """
    last = max(kinds.rfind(_ANSWER, 0, stop), kinds.rfind(_ADDRESSED, 0, stop))
    if cut:
        seen = (i for i in range(stop) if kinds[i] not in FORGOTTEN or i > last)
        return [i for i in seen if i >= cut or kinds[i] == _LASTING]
    return [i for i in range(stop) if i > last or kinds[i] not in FORGOTTEN]


def turns_of(kinds: str) -> list[tuple[int, int]]:
    """The assistant's turns as message ranges (start, stop), from the kinds of a conversation's messages.

    A turn ends with its answer, or where somebody other than assistant and tools speaks.
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
