"""What is wrong with somebody's data, row by row, with the place and the remedy.

Codes of errors (the row is left out):
    not-json  not-an-object  unknown-format  unknown-role  unknown-channel  not-text  tools  call-without-name
    arguments-not-json  result-without-call  weight  effort  nothing-to-train
Codes of warnings:
    last-not-assistant  unfinished-turn  empty-final  no-thought  special-tokens  call-without-result  duplicate
    lone-surrogate  too-long
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable

from ossia.data.examples import examples_of, turns_of
from ossia.data.settings import DataSettings
from ossia.harmony.conversation import Conversation, is_answer
from ossia.harmony.problem import Problem, Report
from ossia.harmony.tokenizer_files import SPECIAL_TOKENS
from ossia.harmony.vocabulary import Vocabulary

_SPECIAL = re.compile("|".join(re.escape(text) for text in SPECIAL_TOKENS.values()))
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_conversation(conversation: Conversation) -> list[Problem]:
    """Problems of one converted row, without their file and line (see `place`)."""
    problems: list[Problem] = []
    messages = conversation.messages
    turns = turns_of(messages)

    def warn(code: str, what: str, do: str = "") -> None:
        problems.append(Problem("warning", code, what, do))

    trained = [m for m in messages if m.role == "assistant" and m.weight != 0]
    if not trained:
        what = "nothing to train: the row has no assistant message" + (" with a weight above 0" if turns else "")
        return [Problem("error", "nothing-to-train", what, "end the row with an assistant message")]
    if messages[-1].role != "assistant":
        warn("last-not-assistant", f"the last message is of role {messages[-1].role}: nothing answers it")
    last = messages[turns[-1].stop - 1]
    if last.role == "assistant" and not is_answer(last) and last.recipient is None:
        warn("unfinished-turn", "the last turn has no answer and no call", "give the assistant message a content")
    if any(is_answer(m) and not m.content.strip() for m in trained):
        warn("empty-final", "an answer is empty: the model learns to say nothing", "fill it or remove the row")
    if not any(m.channel == "analysis" for m in trained):
        warn("no-thought", "no chain of thought: the model learns to answer without thinking", "add `thinking`")
    for text in [conversation.instructions or "", *(m.content for m in messages)]:
        if found := _SPECIAL.search(text):
            warn(
                "special-tokens",
                f"the text contains {found[0]}: trained as plain text",
                "remove it if it is a leftover",
            )
            break
    if any(_SURROGATE.search(m.content) for m in messages):
        warn("lone-surrogate", "half a surrogate pair in the text becomes U+FFFD", r"write both halves: \ud83d\ude00")
    return problems


class Duplicates:
    """Finds conversations that were there before."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def check(self, conversation: Conversation) -> list[Problem]:
        """A warning if the same messages under the same instructions and tools came before."""
        content = repr((conversation.messages, conversation.instructions, conversation.tools))
        key = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key not in self._seen:
            self._seen[key] = conversation.source
            return []
        return [Problem("warning", "duplicate", f"the same conversation as {self._seen[key]}", "remove one of them")]


def check_examples(
    conversations: Iterable[Conversation], vocabulary: Vocabulary, settings: DataSettings, report: Report
) -> None:
    """Report what only rendering shows: turns that do not fit into `max_tokens`, rows of which nothing is trained."""
    for conversation in conversations:
        found: list[Problem] = []
        examples = examples_of(conversation, vocabulary, settings, found.append)
        if not examples:
            found.append(Problem("error", "nothing-to-train", "no token of this row is trained"))
        for problem in found:
            report(place(problem, conversation.source))


def place(problem: Problem, source: str) -> Problem:
    """The same problem with file and line, taken from a source such as `data.jsonl:17`."""
    file, _, line = source.rpartition(":")
    return dataclasses.replace(problem, file=file or source, line=int(line) if line.isdigit() else 0)
