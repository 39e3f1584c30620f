"""Compiled rows of one chunk as bytes: what a worker hands back and what the cache keeps.

Layout: eight bytes (big-endian) with the length n of the JSON; n bytes of JSON; then, per conversation, its tokens and
its bounds as 32-bit integers of the machine. Nothing in it names the file: the same rows elsewhere are the same shard.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ossia.data.kinds import ASSISTANT
from ossia.data.rendered import Rendered, TargetTurn
from ossia.harmony.problem import Problem

_PROBLEM = ("level", "code", "what", "do", "path")


@dataclass(slots=True)
class Shard:
    """What became of a chunk's rows. They are named by their index in the chunk: a cached shard fits anywhere."""

    rows: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    conversations: list[tuple[int, Rendered]] = field(default_factory=list)
    problems: list[tuple[int, Problem]] = field(default_factory=list)


def pack_shard(shard: Shard) -> bytes:
    """A shard as bytes."""
    head = {
        "order": sys.byteorder,
        "rows": shard.rows,
        "formats": shard.formats,
        "problems": [(index, *(getattr(problem, key) for key in _PROBLEM)) for index, problem in shard.problems],
        "conversations": [
            (index, made.kinds, made.labels, _unless_plain(made), made.targets, made.facts, len(made.tokens))
            for index, made in shard.conversations
        ],
    }
    text = json.dumps(head, separators=(",", ":")).encode("ascii")
    arrays = (part.tobytes() for _, made in shard.conversations for part in (made.tokens, made.bounds))
    return b"".join([len(text).to_bytes(8, "big"), text, *arrays])


def unpack_shard(data: bytes, file: str = "", numbers: Sequence[int] = ()) -> Shard:
    """The shard in `data`, its rows named by `file` and the number of each row in it.

    Raises:
        ValueError: the bytes are not those of a whole shard of this machine.
    """
    size = int.from_bytes(data[:8], "big")
    head = json.loads(data[8 : 8 + size])
    if head["order"] != sys.byteorder:
        raise ValueError("written on a machine with another byte order")
    shard, place, view = Shard(head["rows"], head["formats"]), 8 + size, memoryview(data)

    def number(index: int) -> int:
        return numbers[index] if index < len(numbers) else 0

    for index, kinds, labels, weights, targets, facts, count in head["conversations"]:
        tokens, bounds = array("i"), array("i")
        for part, length in ((tokens, count), (bounds, 4 * len(kinds))):
            end = place + length * part.itemsize
            if end > len(data):
                raise ValueError("the shard is cut off")
            part.frombytes(view[place:end])
            place = end
        weights = weights if weights is not None else _plain(kinds)
        labels = list(map(sys.intern, labels))
        made = Rendered(f"{file}:{number(index)}", kinds, tokens, bounds, labels, weights, [], facts)
        made.targets = [TargetTurn(*target) for target in targets]
        shard.conversations.append((index, made))
    for index, *values in head["problems"]:
        fields: dict[str, Any] = dict(zip(_PROBLEM, values, strict=True))
        shard.problems.append((index, Problem(**fields, file=file, line=number(index))))
    return shard


def bare(problem: Problem) -> Problem:
    """A problem without its place in a file."""
    return dataclasses.replace(problem, file="", line=0)


def _plain(kinds: str) -> list[float]:
    """The weights of messages that nobody has weighted."""
    return [1.0 if kind in ASSISTANT else 0.0 for kind in kinds]


def _unless_plain(made: Rendered) -> list[float] | None:
    return None if made.weights == _plain(made.kinds) else made.weights
