"""Training examples: one per assistant turn, with a weight for every token.

The context of gpt-oss does not contain the thoughts of answered turns. So a conversation of n turns gives n different
sequences. Each has the prompt as the model gets it for that turn, and the turn itself with all its thoughts, calls and
results. The loss is on exactly the tokens that the model samples:

    <|start|>user<|message|>…<|end|><|start|>assistant                                                  given
    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.f …<|call|>    sampled
    <|start|>functions.f to=assistant<|channel|>commentary<|message|>…<|end|><|start|>assistant         given
    <|channel|>final<|message|>…<|return|>                                                              sampled

`<|return|>` ends a sampled answer. In the context of later turns, `<|end|>` ends the same answer (OpenAI's
docs/format.md). A turn without a thought trains its answer alone, without an empty thought.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ossia.config import DataSection
from ossia.data.kinds import ASSISTANT, TAKES_FLOOR, MessageKind, context, kinds_of, turns_of
from ossia.data.rendered import Alternative, Example, Rendered, TargetTurn
from ossia.errors import OnProblem, Problem
from ossia.harmony.conversation import Conversation, Message, OtherAnswer
from ossia.harmony.render import message_parts, prologue
from ossia.harmony.tokenizer.vocabulary import Vocabulary


def compile_conversation(
    conversation: Conversation,
    vocabulary: Vocabulary,
    settings: DataSection = DataSection(),
    report: OnProblem | None = None,
) -> Rendered:
    """Return the conversation as tokens, rendered once, with its training examples.

    A turn with weight 0 on all messages gives no example. An example longer than `settings.max_tokens` loses whole old
    turns, never a part of the target. An example that is still too long is left out and reported as `too-long`. The
    other answers of a preference pair or a group are in `Rendered.alternatives`, and are not targets.

    Args:
        report: gets the problems. None: problems are ignored.
    """
    made = _tokens(prologue(conversation) + conversation.messages, vocabulary, settings)
    made.source = conversation.source
    turns = turns_of(made.kinds)
    for number, (start, stop) in enumerate(turns):
        if settings.turns == "last" and number < len(turns) - 1:
            continue
        if not any(weight > 0 for weight in made.weights[start:stop]):
            continue
        target, length = _fit(made, TargetTurn(number, start, stop), settings.max_tokens)
        if length <= settings.max_tokens:
            made.targets.append(target)
        elif report is not None:
            what = f"turn {number + 1} has {length:,} tokens even without older turns: left out"
            do = f"raise max_tokens above {settings.max_tokens:,} or shorten the row"
            report(Problem("warning", "too-long", what, do))
    if conversation.rejected or conversation.others:
        made.alternatives = list(_alternatives(conversation, made, vocabulary, settings, report))
    return made


def examples_of(
    conversation: Conversation,
    vocabulary: Vocabulary,
    settings: DataSection = DataSection(),
    report: OnProblem | None = None,
) -> list[Example]:
    """Return the training examples of a conversation, in the order of its turns. See `compile_conversation`."""
    return compile_conversation(conversation, vocabulary, settings, report).examples


def _alternatives(
    conversation: Conversation,
    made: Rendered,
    vocabulary: Vocabulary,
    settings: DataSection,
    report: OnProblem | None,
) -> Iterator[Alternative]:
    """Yield the rejected answer of a pair, and the other answers of a group, each in place of the trained answer.

    The weights are those of supervised training on the answer. The training objective decides how it uses them.
    """
    if conversation.prompt is not None:
        before = len(made.kinds) - len(conversation.messages) + conversation.prompt
    else:
        before = next((start for start, _ in reversed(turns_of(made.kinds))), len(made.kinds))
    answers = [("rejected", OtherAnswer(conversation.rejected))] if conversation.rejected else []
    answers += [("other", answer) for answer in conversation.others]
    for role, answer in answers:
        own = _tokens(answer.messages, vocabulary, settings)
        alternative = Alternative(role, before, own, TargetTurn(0, 0, 0), answer.score)
        joined = made.joined(alternative)
        turns = turns_of(joined.kinds)
        if not turns or not any(weight > 0 for weight in joined.weights[slice(*turns[-1])]):
            continue
        target, length = _fit(joined, TargetTurn(len(turns) - 1, *turns[-1]), settings.max_tokens)
        if length <= settings.max_tokens:
            yield dataclasses.replace(alternative, target=target)
        elif report is not None:
            what = f"the {role} answer has {length:,} tokens even without older turns: left out"
            do = f"raise max_tokens above {settings.max_tokens:,} or shorten the row"
            report(Problem("warning", "too-long", what, do))


def _tokens(messages: Sequence[Message], vocabulary: Vocabulary, settings: DataSection) -> Rendered:
    """Return messages as tokens, with a kind, a label and a weight per message. There are no targets yet."""
    made = Rendered("", kinds_of(messages))
    tokens, bounds, order, factors = made.tokens, made.bounds, settings.header_order, settings.channel_weights
    for message, kind in zip(messages, made.kinds, strict=True):
        start, header, content, end = message_parts(message, vocabulary, order)
        tokens.extend(start)
        bounds.append(len(tokens))
        tokens.extend(header)
        bounds.append(len(tokens))
        tokens.extend(content)
        bounds.append(len(tokens))
        tokens.append(end)
        bounds.append(len(tokens))
        made.labels.append(message.channel or message.role)
        weight = 0.0
        if kind in ASSISTANT:
            weight = 1.0 if message.weight is None else message.weight
            weight *= factors.get(message.channel or "", 1.0)
        made.weights.append(weight)
    return made


def _fit(made: Rendered, target: TargetTurn, most: int) -> tuple[TargetTurn, int]:
    """Return the target without as many old rounds as needed, and the remaining length of its example in tokens.

    Whole rounds are removed, oldest first, until the example has at most `most` tokens. The last round stays, because
    it has the question. If the whole conversation has at most `most` tokens, the returned length is 0.
    """
    if len(made.tokens) <= most:
        return target, 0
    members = context(made.kinds, target.start)
    total = sum(map(made.length, members)) + sum(map(made.length, range(target.start, target.stop)))
    begins = _rounds(made.kinds, members)
    # The tokens that the removal of each round saves. Its lasting messages stay.
    weights = [0] * len(begins)
    number = 0
    for index in members:
        while number + 1 < len(begins) and index >= begins[number + 1]:
            number += 1
        if index >= begins[0] and made.kinds[index] != MessageKind.LASTING:
            weights[number] += made.length(index)
    dropped = 0
    while total > most and dropped < len(begins) - 1:
        total -= weights[dropped]
        dropped += 1
    return target._replace(cut=begins[dropped] if dropped else 0, dropped_turns=dropped), total


def _rounds(kinds: str, members: Sequence[int]) -> list[int]:
    """Return the indices of the messages that begin a round.

    They are the first message that is not lasting, and each message of user, developer or system after another kind.
    """
    begins: list[int] = []
    before = ""
    for index in members:
        kind = kinds[index]
        if not begins:
            if kind != MessageKind.LASTING:
                begins.append(index)
        elif kind in TAKES_FLOOR and before not in TAKES_FLOOR:
            begins.append(index)
        before = kind
    return begins or [len(kinds)]
