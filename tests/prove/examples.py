"""The proof that training examples agree with the prompts of inference, on random conversations.

A server renders a prompt before the turn and after each tool result in the turn. That prompt must be a prefix of the
example. The tokens that the model samples next, up to the next stop, must be trained, and no others.
"""

from __future__ import annotations

import random
from dataclasses import replace

from ossia.config import DataSection, HeaderOrder
from ossia.data.examples import examples_of
from ossia.data.kinds import kinds_of, turns_of
from ossia.harmony.conversation import Conversation
from ossia.harmony.render import render_prompt
from ossia.harmony.tokenizer.vocabulary import CALL, END, RETURN, Vocabulary
from support import harmony_samples as samples

CHUNK = 500  # conversations
CHUNKS = 40


def check(conversation: Conversation, vocabulary: Vocabulary, order: HeaderOrder) -> tuple[int, list[str]]:
    """Compare all examples of a conversation with its prompts. Return the number of boundaries, and the faults."""
    settings = DataSection(max_tokens=131_072, header_order=order)
    turns = turns_of(kinds_of(conversation.messages))
    examples = examples_of(conversation, vocabulary, settings)
    boundaries, faults = 0, list[str]()
    if [example.turn for example in examples] != list(range(len(turns))):
        return 0, ["there is not one example per turn"]
    for example, (start, stop) in zip(examples, turns, strict=True):
        ids, expected = example.ids, [0.0] * len(example)
        resumes = [i + 1 for i in range(start, stop - 1) if conversation.messages[i].role == "tool"]
        for resume in [start, *resumes]:
            boundaries += 1
            cut = replace(conversation, messages=conversation.messages[:resume])
            prompt = render_prompt(cut, vocabulary, order)
            if ids[: len(prompt)] != prompt:
                faults.append(f"turn {example.turn}, message {resume}: the prompt is not a prefix")
                break
            end = next(i for i in range(len(prompt), len(ids)) if _stops(ids, i))
            expected[len(prompt) : end + 1] = [1.0] * (end + 1 - len(prompt))
        else:
            if example.weights != expected:
                faults.append(f"turn {example.turn}: other tokens are trained than are sampled")
    return boundaries, faults


def _stops(ids: list[int], position: int) -> bool:
    return ids[position] in (CALL, RETURN) or (ids[position] == END and position + 1 == len(ids))


def run_chunk(number: int) -> dict[str, object]:
    """Check one chunk of conversations in both orders of headers, and return the counts."""
    vocabulary, rng = Vocabulary.load(), random.Random(number)
    boundaries, faults, examples = 0, list[str](), 0
    for index in range(CHUNK):
        conversation = samples.conversation(rng)
        examples += len(turns_of(kinds_of(conversation.messages)))
        for order in ("channel-first", "recipient-first"):
            seen, found = check(conversation, vocabulary, order)  # type: ignore[arg-type]
            boundaries += seen
            faults += [f"chunk {number}, conversation {index}, {order}: {fault}" for fault in found]
    counts = {"conversations": CHUNK, "examples": examples, "boundaries": boundaries, "faults": len(faults)}
    return {**counts, "first": faults[:3]}


def verdict(totals: dict[str, object]) -> dict[str, object]:
    """Return the totals. The proof passes if every prompt is a prefix of its example and the weights are right."""
    return {"passed": totals["faults"] == 0, **totals}
