"""Statistics of a data set in tokens, without a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ossia.data.kinds import MessageKind
from ossia.data.rendered import Example, Rendered
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.sequences.order import steps_of
from ossia.sequences.sharing import saving

LIMITS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
"""Lengths in tokens at which truncation is counted."""
_LANGUAGES_OF = {"user": MessageKind.USER, "analysis": MessageKind.THOUGHT, "final": MessageKind.ANSWER}


@dataclass(slots=True)
class Statistics:
    """Counts of training examples. Lengths are in tokens, of whole examples with their context."""

    examples: int = 0
    rows: int = 0
    """The number of conversations."""
    tokens: int = 0
    trained_tokens: int = 0
    channels: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Channel (or role) -> tokens, trained tokens."""
    turns: dict[int, int] = field(default_factory=dict)
    """Trained turns of a conversation -> conversations with so many."""
    histogram: dict[int, int] = field(default_factory=dict)
    """Upper bound (a power of two) -> examples of at most this length, and longer than half of it."""
    over: dict[int, int] = field(default_factory=dict)
    """Length -> longer examples. A limit of that many tokens would shorten them or leave them out."""
    median: int = 0
    percentile_95: int = 0
    longest: int = 0
    over_limit: int = 0
    """Examples longer than the argument `limit` of `statistics`. 0 without a limit."""
    tree_tokens: int = 0
    """Tokens to compute if the examples of each conversation share their common prefixes."""
    tree_tokens_across: int = 0
    """Tokens to compute if conversations share prefixes too, such as system prompts. First turns are compared."""
    tree_tokens_steps: int = 0
    """Tokens to compute if the examples of each training step share prefixes. 0 without the argument `steps`."""
    alternatives: dict[str, int] = field(default_factory=dict)
    """Role of an alternative answer (rejected or other) -> answers that are kept."""
    tools: dict[str, int] = field(default_factory=dict)
    """Recipient of a call -> calls."""
    with_tools: int = 0
    """Conversations that declare tools."""
    efforts: dict[str, int] = field(default_factory=dict)
    """Reasoning effort -> conversations."""
    reasoning_languages: dict[str, int] = field(default_factory=dict)
    """Value of `reasoning_language` in the rows -> conversations."""

    @property
    def trained_share(self) -> float:
        """Trained tokens over all tokens, 0..1."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    @property
    def saved_share(self) -> float:
        """Share of the tokens that sharing prefixes within conversations saves, 0..1."""
        return 1 - self.tree_tokens / self.tokens if self.tokens else 0.0


def statistics(
    conversations: Iterable[Rendered],
    limit: int | None = None,
    at: Sequence[int] = LIMITS,
    advance: Callable[[int], None] | None = None,
    steps: tuple[int, int] | None = None,
) -> Statistics:
    """Return the statistics of compiled conversations.

    Args:
        limit: a length in tokens, for `over_limit`.
        at: lengths in tokens, for `over`.
        advance: a progress callback, called with 1 for each conversation.
        steps: examples per training step and the seed of their order, for `tree_tokens_steps`.
    """
    tokens: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    counted, lengths, all_ = Statistics(), list[int](), list[Example]()
    first_turns: list[Example] = []
    turns: Counter[int] = Counter()
    facts: dict[str, Counter[str]] = defaultdict(Counter)
    for conversation in conversations:
        examples = conversation.examples
        turns[len(examples)] += 1
        for example in examples:
            for run in example.runs():
                tokens[run.channel] += run.stop - run.start
                trained[run.channel] += (run.stop - run.start) * (run.weight > 0)
        lengths += map(len, examples)
        counted.tree_tokens += saving([examples]).shared
        all_ += examples
        first_turns += examples[:1]
        facts["alternatives"].update(one.role for one in conversation.alternatives)
        _count_facts(conversation, counted, facts)
        if advance is not None:
            advance(1)
    if not lengths:
        return counted
    lengths.sort()
    unshared, shared = saving([first_turns])
    counted.tree_tokens_across = counted.tree_tokens - unshared + shared
    if steps is not None:
        counted.tree_tokens_steps = saving(steps_of(all_, *steps)).shared
        # The count of first turns does not contain the tokens that repeated conversations share in later turns.
        counted.tree_tokens_across = min(counted.tree_tokens_across, counted.tree_tokens_steps)
    counted.examples, counted.rows = len(lengths), sum(turns.values())
    counted.tokens, counted.trained_tokens = sum(lengths), sum(trained.values())
    counted.channels = {channel: (tokens[channel], trained[channel]) for channel in sorted(tokens)}
    counted.turns = dict(sorted(turns.items()))
    counted.histogram = dict(sorted(Counter(1 << (length - 1).bit_length() for length in lengths).items()))
    counted.over = {bound: sum(length > bound for length in lengths) for bound in at}
    counted.median = lengths[(len(lengths) - 1) // 2]
    counted.percentile_95 = lengths[(len(lengths) * 95 + 99) // 100 - 1]
    counted.longest = lengths[-1]
    counted.over_limit = sum(length > limit for length in lengths) if limit is not None else 0
    counted.alternatives = dict(facts["alternatives"])
    counted.tools = dict(facts["calls"].most_common())
    counted.efforts = dict(facts["effort"].most_common())
    counted.reasoning_languages = dict(facts["reasoning_language"].most_common())
    return counted


def detect_languages(
    conversations: Sequence[Rendered], vocabulary: Vocabulary, most: int = 400, letters: int = 2000
) -> dict[str, dict[str, int]]:
    """Return the languages of questions, thoughts and answers, as detected by py3langid.

    The result is {"user" | "analysis" | "final": {ISO 639 code: conversations}}. Texts with fewer than 20 letters are
    not counted.

    Args:
        most: largest number of conversations to read, at equal distances.
        letters: number of characters of each kind that are read per conversation.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for conversation in conversations[:: max(1, -(-len(conversations) // most))]:
        for name, kind in _LANGUAGES_OF.items():
            text = " ".join(content(conversation, index, vocabulary) for index in _places(conversation, kind))[:letters]
            if sum(map(str.isalpha, text)) >= 20:
                found[name][identifier.classify(text)[0]] += 1
    return {name: dict(counts.most_common()) for name, counts in found.items()}


def content(conversation: Rendered, message: int, vocabulary: Vocabulary) -> str:
    """Return the text of the message with the index `message`."""
    start, stop = conversation.bounds[4 * message + 1 : 4 * message + 3]
    return vocabulary.decode(conversation.tokens[start:stop])


def _places(conversation: Rendered, kind: MessageKind) -> list[int]:
    return [index for index, letter in enumerate(conversation.kinds) if letter == kind]


def _count_facts(conversation: Rendered, counted: Statistics, facts: dict[str, Counter[str]]) -> None:
    row = conversation.facts
    counted.with_tools += bool(row.get("tools"))
    for name in ("effort", "reasoning_language"):
        if isinstance(value := row.get(name), str):
            facts[name][value] += 1
    calls = row.get("calls")
    if isinstance(calls, dict):
        facts["calls"].update(calls)
