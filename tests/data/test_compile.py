"""Tests of compiling: equal results from any number of processes and from the cache, mixtures, and killed workers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ossia.config import DataSection, DataSource
from ossia.data import Rendered, compile_sources, examples_of, load_conversations, statistics
from ossia.data import cache as cache_module
from ossia.data import compile as compile_module
from ossia.data.cache import Cache, Shard, pack_shard, unpack_shard
from ossia.data.kinds import MessageKind
from ossia.data.prepare import hold_back, prepare
from ossia.data.rendered import TargetTurn
from ossia.data.sources import read_chunks, read_rows
from ossia.errors import Problem, UserError
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from support import harmony_samples as samples

SETTINGS = DataSection(max_tokens=100_000)


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "compiled-cache"
    monkeypatch.setattr(cache_module, "cache_folder", lambda: folder)
    return folder


def chat(rng: random.Random, turns: int = 3) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": samples.text(rng)}]
    for _ in range(turns):
        messages.append({"role": "user", "content": samples.text(rng)})
        thinking = {"thinking": samples.text(rng)} if rng.random() < 0.7 else {}
        messages.append({"role": "assistant", "content": samples.text(rng, 12) + ".", **thinking})
    return {"messages": messages}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def contents(conversations: list[Rendered]) -> list[Any]:
    return [(c.source, [(e.ids, e.weights, e.channels, e.turn) for e in c.examples], c.facts) for c in conversations]


def test_compiled_examples_equal_those_of_each_conversation(tmp_path: Path, vocabulary: Vocabulary) -> None:
    rng = random.Random(1)
    file = write(tmp_path / "d.jsonl", [chat(rng, rng.randint(1, 5)) for _ in range(60)])
    compiled = compile_sources(file, vocabulary, SETTINGS)
    single = [e for c in load_conversations(file, SETTINGS).conversations for e in examples_of(c, vocabulary, SETTINGS)]
    assert [(e.ids, e.weights, e.channels, e.row) for e in compiled.examples] == [
        (e.ids, e.weights, e.channels, e.row) for e in single
    ]
    assert compiled.rows == 60 and compiled.formats == {"openai": 60} and compiled.cached == 0


def test_processes_and_cache_change_nothing(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has many small chunks, some with bad rows. It is compiled in one process, in two, and from the cache."""
    monkeypatch.setattr("ossia.data.sources.CHUNK_BYTES", 4000)
    monkeypatch.setattr(compile_module, "SMALL", 0)
    rng = random.Random(2)
    rows: list[Any] = [chat(rng) for _ in range(120)]
    rows[17], rows[40], rows[41] = "{broken", {"messages": [{"role": "usr", "content": ""}]}, ""
    rows[90] = rows[3]
    file = write(tmp_path / "d.jsonl", rows)
    assert len(list(read_chunks(DataSource(path=str(file))))) > 10
    alone = compile_sources(file, vocabulary, SETTINGS, cache=False)
    pair = compile_sources(file, vocabulary, SETTINGS, workers=2)
    again = compile_sources(file, vocabulary, SETTINGS)
    assert contents(alone.conversations) == contents(pair.conversations) == contents(again.conversations)
    assert alone.problems == pair.problems == again.problems
    assert (alone.rows, alone.formats) == (pair.rows, pair.formats) == (again.rows, again.formats)
    assert (alone.cached, pair.cached, again.cached) == (0, 0, 117)
    assert [(p.code, p.line) for p in alone.errors] == [("not-json", 18), ("unknown-role", 41)]
    assert [(p.code, p.line) for p in alone.warnings if p.code == "duplicate"] == [("duplicate", 91)]


def test_rows_added_to_a_file_compile_alone(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossia.data.sources.CHUNK_BYTES", 4000)
    rng = random.Random(3)
    rows = [chat(rng) for _ in range(40)]
    first = compile_sources(write(tmp_path / "d.jsonl", rows), vocabulary, SETTINGS)
    more = compile_sources(write(tmp_path / "renamed.jsonl", [*rows, chat(rng)]), vocabulary, SETTINGS)
    assert first.cached == 0 and 30 < more.cached < 41 and len(more.conversations) == 41
    assert all("renamed.jsonl" in conversation.source for conversation in more.conversations)


OTHER_TOKENS = {
    "format": "openai", "columns": {"a": "b"}, "turns": "last", "max_tokens": 64, "effort": "high",
    "date": "2026-01-31", "identity": "I.", "knowledge_cutoff": None, "builtin_tools": ["python"],
    "channel_weights": {"analysis": 0.5}, "header_order": "recipient-first",
}  # fmt: skip
SAME_TOKENS = {
    "train": ["e.jsonl"], "validation": [DataSource(path="e.jsonl")], "validation_share": 0.1, "strict": True,
    "cache": False,
}  # fmt: skip


def test_settings_that_decide_on_tokens_are_other_entries(
    tmp_path: Path, vocabulary: Vocabulary, own_cache: Path
) -> None:
    assert OTHER_TOKENS.keys() | SAME_TOKENS.keys() == DataSection.model_fields.keys()
    file = write(tmp_path / "d.jsonl", [chat(random.Random(4))])
    compile_sources(file, vocabulary, SETTINGS)
    (chunk,) = read_chunks(DataSource(path=str(file)))
    for change in ({key: value} for key, value in (OTHER_TOKENS | SAME_TOKENS).items()):
        found = Cache(SETTINGS.model_copy(update=change), vocabulary.digest).read(chunk)
        assert (found is None) == (change.keys() <= OTHER_TOKENS.keys()), change
    assert Cache(SETTINGS, "another vocabulary").read(chunk) is None


def test_a_changed_compiler_reads_no_old_entry(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "d.jsonl", [chat(random.Random(4))])
    compile_sources(file, vocabulary, SETTINGS)
    monkeypatch.setattr(cache_module, "compiler_digest", lambda: "another")
    assert compile_sources(file, vocabulary, SETTINGS).cached == 0


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:20], lambda b: b"", lambda b: b"\0" * 8 + b[8:]])
def test_a_damaged_entry_is_compiled_anew(tmp_path: Path, vocabulary: Vocabulary, own_cache: Path, damage: Any) -> None:
    file = write(tmp_path / "d.jsonl", [chat(random.Random(5))])
    before = compile_sources(file, vocabulary, SETTINGS)
    (entry,) = (path for path in own_cache.rglob("*") if path.is_file())
    entry.write_bytes(damage(entry.read_bytes()))
    again = compile_sources(file, vocabulary, SETTINGS)
    assert again.cached == 0 and contents(again.conversations) == contents(before.conversations)
    assert compile_sources(file, vocabulary, SETTINGS).cached == 1


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache_module, "cache_folder", lambda: tmp_path / "file")
    file = write(tmp_path / "d.jsonl", [chat(random.Random(6))])
    assert len(compile_sources(file, vocabulary, SETTINGS).conversations) == 1


def test_the_cache_forgets_what_was_not_used_for_longest(
    tmp_path: Path, vocabulary: Vocabulary, own_cache: Path
) -> None:
    store = Cache(SETTINGS, vocabulary.digest)
    files = [write(tmp_path / f"{n}.jsonl", [chat(random.Random(n))]) for n in range(3)]
    for age, file in enumerate(files):
        compile_sources(file, vocabulary, SETTINGS)
        (chunk,) = read_chunks(DataSource(path=str(file)))
        os.utime(store._path(chunk), (1000 + age, 1000 + age))
    chunks = [next(iter(read_chunks(DataSource(path=str(file))))) for file in files]
    assert store.read(chunks[0]) is not None  # the read makes it the newest
    sizes = [store._path(chunk).stat().st_size for chunk in chunks]
    store.trim(sizes[0] + sizes[2])
    assert [store._path(chunk).exists() for chunk in chunks] == [True, False, True]


def test_a_worker_that_is_killed_loses_nothing(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossia.data.sources.CHUNK_BYTES", 3000)
    monkeypatch.setattr(compile_module, "SMALL", 0)
    file = write(tmp_path / "d.jsonl", [chat(random.Random(n)) for n in range(60)])
    expected = compile_sources(file, vocabulary, SETTINGS, cache=False)
    killed = []

    def kill(_: int) -> None:
        pool = next(iter(pools))
        if not killed and pool._pool is not None and pool._pool._processes:
            killed.append(next(iter(pool._pool._processes)))
            os.kill(killed[0], signal.SIGKILL)

    pools: list[Any] = []
    enter = compile_module._Pool.__enter__
    monkeypatch.setattr(compile_module._Pool, "__enter__", lambda self: (pools.append(self), enter(self))[1])
    found = compile_sources(file, vocabulary, SETTINGS, workers=2, cache=False, progress=kill)
    assert killed and contents(found.conversations) == contents(expected.conversations)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """The parent is killed while both workers are busy. They get no message."""
    file = write(tmp_path / "d.jsonl", [chat(random.Random(n)) for n in range(60)] * 40)
    code = (
        "import sys, os, signal, time\n"
        "import ossia.data.sources as s, ossia.data.compile as c\n"
        "from ossia.harmony.tokenizer.vocabulary import Vocabulary\n"
        "if __name__ == '__main__':\n"
        "    s.CHUNK_BYTES, c.SMALL = 3000, 0\n"
        "    def kill(_):\n"
        "        print(*pool._pool._processes, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    enter = c._Pool.__enter__\n"
        "    def entered(self):\n"
        "        global pool\n"
        "        pool = self\n"
        "        return enter(self)\n"
        "    c._Pool.__enter__ = entered\n"
        "    c.compile_sources(sys.argv[1], Vocabulary.load(), workers=2, cache=False, progress=kill)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script), str(file)], capture_output=True, text=True, timeout=120)
    workers = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(workers) == 2
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_shards_survive_packing(vocabulary: Vocabulary) -> None:
    kinds = "".join((MessageKind.USER, MessageKind.THOUGHT, MessageKind.ANSWER))
    made = Rendered("x:1", kinds, labels=["user", "analysis", "final"], weights=[0.0, 0.5, 1.0], facts={"a": [1]})
    made.tokens.extend([1, 2, 3]), made.bounds.extend(range(12)), made.targets.append(TargetTurn(0, 1, 3))
    shard = Shard(3, {"openai": 1}, [(1, made)], [(2, Problem("error", "code", "what", "do", "path"))])
    back = unpack_shard(pack_shard(shard), "new.jsonl", [10, 20, 30])
    ((index, again),) = back.conversations
    assert (index, again.source) == (1, "new.jsonl:20") and again.weights == made.weights
    assert (again.tokens, again.bounds, again.targets, again.facts) == (
        made.tokens,
        made.bounds,
        made.targets,
        made.facts,
    )
    assert back.problems == [(2, Problem("error", "code", "what", "do", "path", "new.jsonl", 30))]


PAIR = {"prompt": "2 + 2?", "chosen": "4", "rejected": "Five, I think."}
GROUP = {
    "problem": "2 + 2?",
    "generations": ["<think>a</think>5", "<think>b</think>4", "<think>c</think>four"],
    "correctness_math_verify": [False, True, True],
    "correctness_llama": [False, True, False],
}


def alternatives(conversations: list[Rendered]) -> list[Any]:
    """Return everything that is kept of the alternative answers, in the form that a training objective needs."""
    return [
        [(e.role, e.score, e.ids, e.weights, e.channels, e.row) for e in [*(c.pair or ()), *c.group]]
        for c in conversations
    ]


def test_other_answers_come_out_of_workers_and_the_cache_and_are_no_targets(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossia.data.sources.CHUNK_BYTES", 400)
    monkeypatch.setattr(compile_module, "SMALL", 0)
    file = write(tmp_path / "d.jsonl", [chat(random.Random(1)), PAIR, GROUP, chat(random.Random(2))])
    alone = compile_sources(file, vocabulary, SETTINGS, cache=False)
    pooled = compile_sources(file, vocabulary, SETTINGS, workers=2)
    cached = compile_sources(file, vocabulary, SETTINGS)
    assert cached.cached == 4
    assert alternatives(alone.conversations) == alternatives(pooled.conversations) == alternatives(cached.conversations)
    plain, pair, group, _ = cached.conversations
    assert plain.alternatives == [] and plain.pair is None and plain.group == []
    assert pair.pair is not None and pair.group == [] and group.pair is None
    said = [vocabulary.decode(example.ids).rpartition("<|message|>")[2] for example in [*pair.pair, *group.group]]
    assert said == [f"{text}<|return|>" for text in ("4", "Five, I think.", "4", "5", "four")]
    assert [example.role for example in (*pair.pair, *group.group)] == [
        "target",
        "rejected",
        "target",
        "other",
        "other",
    ]
    assert [example.score for example in group.group] == [2.0, 0.0, 1.0]
    assert all(example.role == "target" for example in cached.examples) and len(cached.examples) == 8
    assert statistics(cached.conversations).alternatives == {"rejected": 1, "other": 2}
    prepared = prepare(DataSection(train=[str(file)], validation_share=0), vocabulary, seed=0)
    assert [example.ids for example in prepared.train] == [example.ids for example in alone.examples]


def test_weights_of_the_other_answers_survive_packing(tmp_path: Path, vocabulary: Vocabulary) -> None:
    file = write(tmp_path / "d.jsonl", [GROUP])
    halved = SETTINGS.model_copy(update={"channel_weights": {"analysis": 0.5}})
    for _ in range(2):  # compiled, then from the cache
        (found,) = compile_sources(file, vocabulary, halved).conversations
        assert [set(example.weights) for example in found.group] == [{0.0, 0.5, 1.0}] * 3


def test_a_shard_that_is_cut_off_within_an_alternative_is_damaged(tmp_path: Path, vocabulary: Vocabulary) -> None:
    (chunk,) = read_chunks(DataSource(path=str(write(tmp_path / "d.jsonl", [PAIR]))))
    packed = pack_shard(compile_module.compile_chunk(chunk, vocabulary, SETTINGS))
    (index, made), *_ = unpack_shard(packed).conversations
    assert index == 0 and made.rejected is not None
    with pytest.raises(ValueError, match="cut off"):
        unpack_shard(packed[:-4])


def test_progress_counts_all_bytes(tmp_path: Path, vocabulary: Vocabulary) -> None:
    file = write(tmp_path / "d.jsonl", [chat(random.Random(n)) for n in range(5)])
    for _ in range(2):  # compiled, then from the cache
        seen: list[int] = []
        compile_sources(file, vocabulary, SETTINGS, progress=seen.append)
        assert sum(seen) == file.stat().st_size


def test_strict_raises_the_first_error(tmp_path: Path, vocabulary: Vocabulary) -> None:
    file = write(tmp_path / "d.jsonl", [chat(random.Random(1)), "{", "{"])
    with pytest.raises(UserError, match=r"d\.jsonl:2"):
        compile_sources(file, vocabulary, SETTINGS.model_copy(update={"strict": True}))


def test_rows_with_odd_line_ends_keep_their_numbers(tmp_path: Path, vocabulary: Vocabulary) -> None:
    text = json.dumps(chat(random.Random(1)))
    (tmp_path / "d.jsonl").write_bytes(f"\ufeff{text}\r\n\r\n{text}\u2028\n{text}".encode())
    rows = list(read_rows(tmp_path / "d.jsonl"))
    assert [(row.line, bool(row.error)) for row in rows] == [(1, False), (3, True), (4, False)]


# --------------------------------------------------------------------------------------------------------- mixtures


def test_a_mixture_has_a_format_columns_a_limit_and_a_weight_for_each(tmp_path: Path, vocabulary: Vocabulary) -> None:
    first = write(tmp_path / "a.jsonl", [chat(random.Random(n), 1) for n in range(8)])
    second = write(tmp_path / "b.jsonl", [{"q": f"Question {n}?", "r": f"Reply {n}."} for n in range(100)])
    mixture = [
        DataSource(path=str(first), limit=3, weight=2.0),
        DataSource(
            path=str(second), format="prompt-completion", columns={"q": "prompt", "r": "completion"}, weight=0.25
        ),
    ]
    compiled = compile_sources(mixture, vocabulary, SETTINGS, seed=7)
    places = [Path(c.source).name for c in compiled.conversations]
    assert places[:6] == ["a.jsonl:1", "a.jsonl:1", "a.jsonl:2", "a.jsonl:2", "a.jsonl:3", "a.jsonl:3"]
    rest = places[6:]
    assert len(set(rest)) == len(rest) == 25 and all(place.startswith("b.jsonl") for place in rest)
    assert compiled.usable == 103
    few = compile_sources([DataSource(path=str(first), weight=0.01)], vocabulary, SETTINGS)
    assert len(few.conversations) == 1 and few.usable == 8  # every part of a mixture keeps at least one conversation
    again = compile_sources(mixture, vocabulary, SETTINGS, seed=7)
    other = compile_sources(mixture, vocabulary, SETTINGS, seed=8)
    assert contents(again.conversations) == contents(compiled.conversations) != contents(other.conversations)
    assert set(compiled.formats) == {"openai", "prompt-completion"}


def test_a_recipe_mixes_data_sets(tmp_path: Path, vocabulary: Vocabulary) -> None:
    file = write(tmp_path / "a.jsonl", [{"ask": f"Question {n}?", "say": f"Reply {n}."} for n in range(20)])
    section = DataSection.model_validate(
        {
            "train": [{"path": str(file), "columns": {"ask": "prompt", "say": "completion"}, "weight": 2, "limit": 10}],
            "validation_share": 0.2,
            "channel_weights": {"final": 0.5},
        }
    )
    prepared = prepare(section, vocabulary, seed=1)
    assert len(prepared.train) == 16 and len(prepared.validation) == 2
    assert {weight for example in prepared.train for weight in example.weights} == {0.0, 0.5}
    assert not {e.row for e in prepared.train} & {e.row for e in prepared.validation}


def test_repeats_stay_on_one_side_of_the_split() -> None:
    conversations = [Rendered(f"d:{n}") for n in range(20)]
    rest, held = hold_back([c for c in conversations for _ in range(3)], 0.25, seed=0)
    assert len(held) == 5 and len(rest) == 45 and not {c.source for c in rest} & {c.source for c in held}
