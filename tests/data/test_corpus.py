"""Tests of the checks across rows: near-duplicates (against an exhaustive search), leaks and effort labels."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import numpy as np
import pytest

from ossia.config import DataSection, Effort
from ossia.data import Rendered, compile_sources
from ossia.data.compile import _facts
from ossia.data.corpus import SIMILAR, _bands, _signature, effort_labels, leak_problems, leaks, near_duplicates
from ossia.data.examples import compile_conversation
from ossia.data.kinds import MessageKind
from ossia.data.stats import detect_languages, statistics
from ossia.harmony import conversation as c
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.sequences.order import conversations_of, steps_of
from ossia.sequences.sharing import estimated_saving, saving
from ossia.sequences.tree import grow

ROOMY = DataSection(max_tokens=100_000)
WORDS = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "ne", "pu", "ra", "si", "to") for b in ("ban", "dal", "fer", "gim", "hos")
]


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


def made(vocabulary: Vocabulary, place: str, *messages: c.Message, effort: Effort = "medium") -> Rendered:
    conversation = c.Conversation(messages, c.SystemSettings(effort=effort), "Always the same instructions. " * 20)
    rendered = compile_conversation(c.Conversation(**{**fields(conversation), "source": place}), vocabulary, ROOMY)
    rendered.facts = _facts(conversation, rendered)
    return rendered


def fields(conversation: c.Conversation) -> dict[str, object]:
    return {name: getattr(conversation, name) for name in ("messages", "system", "instructions", "tools", "extra")}


def words(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(WORDS) for _ in range(count)]


def runs(conversation: Rendered) -> set[tuple[int, ...]]:
    """Return the runs of five tokens after the developer message, without the package's code for them."""
    tokens: list[int] = []
    for index, kind in enumerate(conversation.kinds):
        if kind != MessageKind.LASTING:
            tokens += conversation.tokens[conversation.bounds[4 * index + 1] : conversation.bounds[4 * index + 2]]
    return {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)}


def test_near_duplicates_are_those_of_an_exhaustive_search(vocabulary: Vocabulary) -> None:
    rng = random.Random(0)
    conversations: list[Rendered] = []
    for number in range(60):
        text = words(rng, 150)
        conversations.append(made(vocabulary, f"d:{2 * number + 1}", c.user("q"), c.answer(" ".join(text))))
        for place in rng.sample(range(150), rng.choice([1, 2, 4, 12])):
            text[place] = "changed"
        conversations.append(made(vocabulary, f"d:{2 * number + 2}", c.user("q"), c.answer(" ".join(text))))
    expected, kept = set(), list[Rendered]()
    for conversation in conversations:
        own = runs(conversation)
        if any(len(own & runs(other)) / len(own | runs(other)) >= SIMILAR for other in kept):
            expected.add(conversation.source)
        else:
            kept.append(conversation)
    found = {problem.where.strip() for problem in near_duplicates(conversations)}
    assert 20 < len(expected) < 60 and found <= expected
    assert len(found) >= 0.95 * len(expected)  # MinHash may miss a pair at the threshold, but adds none


def test_exact_duplicates_and_short_rows_are_not_near_duplicates(vocabulary: Vocabulary) -> None:
    long = c.answer(" ".join(words(random.Random(1), 60)))
    same = [made(vocabulary, f"d:{n}", c.user("q"), long) for n in (1, 2)]
    short = [made(vocabulary, f"d:{n}", c.user("Hi there"), c.answer(f"Hello {n}")) for n in (3, 4)]
    assert near_duplicates(same + short) == []


def test_the_share_is_that_of_all_runs(vocabulary: Vocabulary) -> None:
    """The conversations are so short that one run more or less changes the percentage."""
    rng = random.Random(5)
    for length in range(20, 40):
        text = words(rng, length)
        first = made(vocabulary, "d:1", c.user("q"), c.answer(" ".join(text)))
        for place in (0, length // 2, -1):
            changed = [*text]
            changed[place] = "changed"
            second = made(vocabulary, "d:2", c.user("q"), c.answer(" ".join(changed)))
            share = len(runs(first) & runs(second)) / len(runs(first) | runs(second))
            found = [problem.what for problem in near_duplicates([first, second])]
            assert len(found) == (share >= SIMILAR)
            assert all(f"({share:.0%} of its" in what for what in found)


@pytest.mark.parametrize(("shared", "found"), [(20, ["d:2"]), (19, [])])
def test_four_fifths_of_the_runs_are_similar_and_less_is_not(shared: int, found: list[str]) -> None:
    """Two sequences have 22 tokens and 18 runs each.

    With 20 common tokens they share 16 of 20 runs. With 19 common tokens they share 15 of 21.
    """

    def spoken(place: str, tokens: list[int]) -> Rendered:
        bounds = array("i", [0, 0, len(tokens), len(tokens)])
        return Rendered(place, MessageKind.ANSWER, array("i", tokens), bounds, facts={"digest": place})

    for start in range(0, 5000, 100):  # with so many pairs, some are compared
        tokens = list(range(start, start + 22))
        pair = spoken("d:1", tokens), spoken("d:2", [*tokens[:shared], *range(9000, 9022 - shared)])
        if near := near_duplicates(pair):
            break
    assert [problem.where.strip() for problem in near] == found
    assert all("(80% of its" in problem.what for problem in near)


def test_sixteen_runs_are_enough_to_compare(vocabulary: Vocabulary) -> None:
    """A conversation of 19 tokens has 15 runs of five tokens, and a conversation of 20 tokens has 16."""
    rng, compared = random.Random(6), dict[int, bool]()
    while {15, 16} - compared.keys():
        text = " ".join(words(rng, rng.randint(3, 12)))
        pair = [made(vocabulary, "d:1", c.user("q"), c.answer(text)) for _ in range(2)]
        pair[1].facts = {**pair[1].facts, "digest": "another"}
        compared[len(runs(pair[0]))] = near_duplicates(pair) != []
    assert all(found == (count >= 16) for count, found in compared.items()), compared


def test_signatures_hold_the_least_hash_of_each_range_and_bands_use_each_place_once() -> None:
    rng = random.Random(7)
    for count in (1, 16, 40, 500):
        hashes = sorted(rng.randrange(2**64) for _ in range(count))
        signature = _signature(np.array(hashes, np.uint64))
        expected = [min((one for one in hashes if one >= place * 2**58), default=hashes[0]) for place in range(64)]
        assert signature.tolist() == expected
    edge = _signature(np.array([0, 2**58, 2**59 - 1, 2**59], np.uint64))
    assert edge[:4].tolist() == [0, 2**58, 2**59, 0]
    bands = dict(_bands(np.arange(64, dtype=np.uint64)))
    places = [np.frombuffer(band, np.uint64).tolist() for band in bands.values()]
    assert len(places) == 16
    assert sorted(place for band in places for place in band) == list(range(64))
    assert {len(band) for band in places} == {4}


def test_leaks_name_both_rows(vocabulary: Vocabulary) -> None:
    rng = random.Random(2)
    text = words(rng, 100)
    train = [
        made(vocabulary, "train:1", c.user("What is 2 + 2?"), c.answer("4")),
        made(vocabulary, "train:2", c.user("Tell me."), c.answer(" ".join(text))),
    ]
    text[50] = "changed"
    test = [
        made(vocabulary, "test:1", c.user("What is 2 + 2?"), c.thought("Easy."), c.answer("Four.")),
        made(vocabulary, "test:2", c.user("Do tell me!"), c.answer(" ".join(text))),
        made(vocabulary, "test:3", c.user("What is 2 + 3?"), c.answer("5")),
        made(vocabulary, "test:4", c.user("What is 2 + 2?"), c.answer("4")),
    ]
    found = {problem.where.strip(): problem.what for problem in leak_problems(leaks(train, test))}
    assert set(found) == {"test:1", "test:2", "test:4"}
    assert "same question: train:1" in found["test:1"] and "nearly the same conversation: train:2" in found["test:2"]
    assert "same conversation: train:1" in found["test:4"]


def test_effort_labels_that_the_thoughts_contradict(vocabulary: Vocabulary) -> None:
    def row(place: str, effort: Effort, length: int) -> Rendered:
        return made(vocabulary, place, c.user(place), c.thought("word " * length), c.answer("a"), effort=effort)

    rows = [row("d:1", "low", 1500), row("d:2", "high", 3), row("d:3", "low", 20), row("d:4", "high", 2000)]
    assert [(problem.where.strip(), problem.code) for problem in effort_labels(rows)] == [
        ("d:1", "effort-length"),
        ("d:2", "effort-length"),
    ]
    swapped = [row("d:1", "low", 300), row("d:2", "high", 100)]
    (problem,) = effort_labels(swapped)
    assert "swapped" in problem.do and problem.where == ""
    assert effort_labels([row("d:1", "low", 100), row("d:2", "high", 300)]) == []
    assert effort_labels([made(vocabulary, "d:1", c.user("q"), c.answer("a"), effort="high")]) == []


def test_tree_tokens_are_the_nodes_of_the_prefix_tree(vocabulary: Vocabulary) -> None:
    rng = random.Random(3)
    conversations = []
    for number in range(12):
        messages: list[c.Message] = []
        for _ in range(rng.randint(1, 5)):
            thought = [c.thought(" ".join(words(rng, 9)))] * rng.randint(0, 1)
            messages += [c.user(" ".join(words(rng, 5))), *thought, c.answer(" ".join(words(rng, 7)))]
        conversations.append(made(vocabulary, f"d:{number}", *messages))
    nodes = [
        {tuple(example.ids[:stop]) for example in conversation.examples for stop in range(1, len(example) + 1)}
        for conversation in conversations
    ]
    found = statistics(conversations)
    assert found.tree_tokens == sum(map(len, nodes)) < found.tokens
    assert found.tree_tokens_across == len(set().union(*nodes)) < found.tree_tokens
    assert 0 < found.saved_share < 1
    assert found.tree_tokens == sum(tree.tokens for one in conversations for tree in grow(one.examples))


def test_steps_share_what_training_shares(vocabulary: Vocabulary) -> None:
    """The steps have the order of training, and the counts are those of the trees that training builds."""
    from ossia.train.trainer import ConversationOrder

    rng = random.Random(4)
    rows = []
    for number in range(9):
        messages = [c.user("go")]
        for _ in range(rng.randint(1, 4)):
            messages += [c.thought(" ".join(words(rng, 9))), c.answer(" ".join(words(rng, 7))), c.user("on")]
        rows.append(made(vocabulary, f"d:{number}", *messages[:-1]))
    rows.insert(4, rows[3])  # a mixture may repeat a conversation
    examples = [example for row in rows for example in row.examples]
    order = ConversationOrder(conversations_of(examples), 4, 7, steps_done=lambda: 0)
    expected = [[examples[index] for index in step] for step in order]
    steps = list(steps_of(examples, 4, 7))
    assert steps == expected
    trees = [tree for step in steps for tree in grow(step)]
    counted = saving(iter(steps))
    assert counted == (sum(map(len, examples)), sum(tree.tokens for tree in trees))
    found = statistics(rows, steps=(4, 7))
    assert found.tree_tokens_across < found.tree_tokens_steps == counted.shared < found.tokens
    assert statistics(rows).tree_tokens_steps == 0
    assert estimated_saving(examples, 4, 7, 100_000) == counted
    longest = max(map(len, examples))
    cut = estimated_saving(examples, 4, 7, longest)  # across micro-batches, a prefix is computed again
    assert counted.shared < cut.shared <= cut.unshared
    part = estimated_saving(examples, 4, 7, 100_000, looked_at=1)
    assert part.unshared == counted.unshared and 0 < part.shared < part.unshared


def test_languages_are_told(vocabulary: Vocabulary) -> None:
    french = "Je pense que la réponse dépend de la distance entre les deux villes."
    said = (c.user("Where is the station, please?"), c.thought(french), c.answer("Là-bas, à gauche de la mairie."))
    rows = [made(vocabulary, f"d:{n}", *said) for n in range(3)]
    assert detect_languages(rows, vocabulary) == {"user": {"en": 3}, "analysis": {"fr": 3}, "final": {"fr": 3}}


def test_statistics_tell_tools_efforts_and_labels(tmp_path: Path, vocabulary: Vocabulary) -> None:
    call = '{"id": "1", "function": {"name": "clock", "arguments": "{}"}}'
    (tmp_path / "d.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "time?"}, {"role": "assistant", "tool_calls": [' + call + "]},"
        '{"role": "tool", "tool_call_id": "1", "content": "12"}, {"role": "assistant", "content": "Noon."}],'
        '"tools": [{"type": "function", "function": {"name": "clock"}}], "reasoning_effort": "high"}\n'
        '{"reasoning_language": "French", "messages": [{"role": "user", "content": "a"},'
        '{"role": "assistant", "content": "b", "thinking": "c"}]}\n'
    )
    found = statistics(compile_sources(tmp_path / "d.jsonl", vocabulary, cache=False).conversations)
    assert found.tools == {"functions.clock": 1} and found.with_tools == 1
    assert found.efforts == {"high": 1, "medium": 1} and found.reasoning_languages == {"French": 1}
