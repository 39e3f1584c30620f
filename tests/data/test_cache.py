"""Tests of the names of cached shards. A name covers everything that changes the compiled result of a chunk."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ossia.config import DataSection
from ossia.data.cache import Cache, Shard, pack_shard
from ossia.data.sources import Chunk

CHUNK = Chunk("d.jsonl", (1, 2), b'{"prompt": "a", "completion": "b"}\n\n', {1: ("not-json", "cut off")})


@pytest.fixture
def store(tmp_path: Path) -> Cache:
    made = Cache(DataSection(), "vocabulary", tmp_path)
    made.write(CHUNK, pack_shard(Shard(rows=2)))
    return made


@pytest.mark.parametrize(
    "change",
    [
        {"text": b'{"prompt": "a", "completion": "c"}\n\n'},
        {"errors": {}},
        {"errors": {0: ("not-json", "cut off")}},
        {"errors": {1: ("not-text", "cut off")}},
        {"errors": {1: ("not-json", "too deep")}},
        {"errors": {1: ("not-json", "cut off"), 0: ("not-json", "cut off")}},
    ],
)
def test_other_rows_or_other_errors_are_another_shard(store: Cache, change: dict[str, object]) -> None:
    """A row that cannot be read has no text in its chunk. Only its error distinguishes it from an empty line."""
    assert store.read(dataclasses.replace(CHUNK, **change)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"file": "e.jsonl"}, {"numbers": (7, 9)}])
def test_the_same_rows_elsewhere_are_the_same_shard(store: Cache, change: dict[str, object]) -> None:
    found = store.read(dataclasses.replace(CHUNK, **change))  # type: ignore[arg-type]
    assert found is not None
    assert found.rows == 2
