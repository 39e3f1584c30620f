"""Training examples: one per assistant turn, with a weight for every token.

gpt-oss forgets a turn's thoughts once the turn is answered, so a conversation of n turns is n different sequences. Each
consists of the prompt as the model would get it for that turn, and the turn itself with all its thoughts, calls and
results. Trained is exactly what the model samples:

    <|start|>user<|message|>…<|end|><|start|>assistant                                                  given
    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.f …<|call|>    sampled
    <|start|>functions.f to=assistant<|channel|>commentary<|message|>…<|end|><|start|>assistant         given
    <|channel|>final<|message|>…<|return|>                                                              sampled

`<|return|>` ends a sampled answer, `<|end|>` the same answer in history (OpenAI, docs/format.md). A turn without a
thought trains the answer alone; no empty thought is put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ossia.data.settings import DEFAULTS, DataSettings
from ossia.harmony.conversation import Conversation, Message, is_answer, without_old_thoughts
from ossia.harmony.problem import Problem, Report
from ossia.harmony.render import Rendering, prologue, render_message, render_messages
from ossia.harmony.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence of n tokens. All lists have length n."""

    ids: list[int]
    weights: list[float]
    """weights[i] is the weight of predicting ids[i] from ids[:i]; 0 for what is given."""
    channels: list[str]
    """Per token: analysis, commentary, final, or for messages without a channel the role."""
    turn: int
    """Which assistant turn of the conversation, from 0."""
    row: str
    """Where the conversation came from, as in `data.jsonl:17`."""
    dropped_turns: int = 0
    """Old turns left out of the context to fit the limit."""

    @property
    def trained_tokens(self) -> int:
        """Tokens with a weight above 0."""
        return sum(weight > 0 for weight in self.weights)


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages [start, stop) of a conversation: what the model does after a user's message until it stops."""

    start: int
    stop: int


def turns_of(messages: Sequence[Message]) -> list[Turn]:
    """The assistant's turns. A turn ends with its answer, or where somebody other than assistant and tools speaks."""
    turns: list[Turn] = []
    start: int | None = None
    for index, message in enumerate(messages):
        if message.role not in ("assistant", "tool"):
            if start is not None:
                turns.append(Turn(start, index))
            start = None
            continue
        start = index if start is None else start
        if is_answer(message):
            turns.append(Turn(start, index + 1))
            start = None
    return turns if start is None else [*turns, Turn(start, len(messages))]


def examples_of(
    conversation: Conversation,
    vocabulary: Vocabulary,
    settings: DataSettings = DEFAULTS,
    report: Report | None = None,
) -> list[Example]:
    """The training examples of a conversation, in order of its turns.

    A turn whose messages all have weight 0 gives none. Too long examples lose whole old turns, never a part of the
    target; what still does not fit gives none and is reported as `too-long`.
    """
    turns = turns_of(conversation.messages)
    chosen = list(enumerate(turns)) if settings.turns == "every" else list(enumerate(turns))[-1:]
    examples = []
    for number, turn in chosen:
        target = conversation.messages[turn.start : turn.stop]
        if not any(_weight(message) > 0 for message in target):
            continue
        example = _example(conversation, number, turn, vocabulary, settings)
        if len(example.ids) <= settings.max_tokens:
            examples.append(example)
        elif report is not None:
            what = f"turn {number + 1} has {len(example.ids):,} tokens even without older turns: left out"
            do = f"raise max_tokens above {settings.max_tokens:,} or shorten the row"
            report(Problem("warning", "too-long", what, do))
    return examples


def _example(
    conversation: Conversation, number: int, turn: Turn, vocabulary: Vocabulary, settings: DataSettings
) -> Example:
    target = conversation.messages[turn.start : turn.stop]
    head = prologue(conversation)
    rounds = _rounds(without_old_thoughts(conversation.messages[: turn.start]))

    def length(part: Sequence[Message]) -> int:
        return sum(len(render_message(message, vocabulary, settings.order)) for message in part)

    # Whole rounds go, oldest first; the last one asks the question that the target answers.
    total, dropped = sum(length(part) for part in (head, *rounds, target)), 0
    while total > settings.max_tokens and dropped < len(rounds) - 1:
        lasting = [m for m in rounds[dropped] if m.role == "developer"]
        total -= length(rounds[dropped]) - length(lasting)
        rounds[dropped] = lasting
        dropped += 1
    messages = [*head, *(m for part in rounds for m in part), *target]
    rendering = render_messages(messages, vocabulary, settings.order, stop=True)
    weights, channels = _weights(rendering, messages, len(messages) - len(target))
    return Example(rendering.ids, weights, channels, number, conversation.source, dropped)


def _rounds(messages: Sequence[Message]) -> list[list[Message]]:
    """Cut where a user (or developer) speaks after the assistant."""
    rounds: list[list[Message]] = []
    for index, message in enumerate(messages):
        speaks = message.role in ("user", "developer")
        if not rounds or (speaks and messages[index - 1].role in ("assistant", "tool")):
            rounds.append([])
        rounds[-1].append(message)
    return rounds


def _weights(rendering: Rendering, messages: Sequence[Message], first: int) -> tuple[list[float], list[str]]:
    """Weights and channels per token; the target begins with the message `first`."""
    weights, channels = [0.0] * len(rendering.ids), [""] * len(rendering.ids)
    for span in rendering.spans:
        width = span.stop - span.start
        channels[span.start : span.stop] = [span.label] * width
        message = messages[span.message]
        if span.message < first or message.role != "assistant":
            continue
        if span.part == "start" and not (span.message > first and _goes_on(messages[span.message - 1])):
            continue
        weights[span.start : span.stop] = [_weight(message)] * width
    return weights, channels


def _goes_on(message: Message) -> bool:
    """Whether the model itself writes `<|start|>assistant` after this message: its own, closed by `<|end|>`."""
    return message.role == "assistant" and message.recipient is None


def _weight(message: Message) -> float:
    if message.role != "assistant":
        return 0.0
    return 1.0 if message.weight is None else message.weight
