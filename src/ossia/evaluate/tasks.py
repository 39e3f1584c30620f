"""The questions of an evaluation, and the measures of an answer.

A question is a conversation without its last step. The last step is the expected response of the model. Every measure
reads the channels of the parsed completion, not the raw text. So a word inside a thought does not count as an answer.

    thought language    every sentence of the thought is in the requested language
    answer              the expected answer occurs in the final message as a whole token
    answer language     the final message is in the language of the question
    exact match         the final message equals the row's, except case and spacing (rows without an expected answer)
    call                the tool call has the row's function and arguments (rows that end with a call)
    well-formed         Harmony without repairs, one final message, ended by <|return|> (or a tool call by <|call|>)
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ossia.config import HeaderOrder
from ossia.evaluate.language import judge
from ossia.generate.engine import Completion
from ossia.harmony.conversation import Conversation, Message, ParsedMessage
from ossia.harmony.parse import parse
from ossia.harmony.render import render_prompt
from ossia.harmony.tokenizer.vocabulary import CALL, RETURN, Vocabulary

MEASURES = ("thought language", "answer", "answer language", "exact match", "call", "well-formed")

_REQUEST = re.compile(r"^reasoning language: *(.+?) *$", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"(?<!\w)[-−]?\d+(?:[.,]\d+)*(?!\w)")
_GROUPED = re.compile(r"[-−]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[-−]?\d{1,3}(?:\.\d{3})+(?:,\d+)?")


@dataclass(frozen=True)
class Question:
    """A held-out row. A field that the row does not have is None, and its measure does not apply."""

    number: int
    """The row's place in the data, from 1."""
    source: str
    """The row's file and line (`Conversation.source`)."""
    conversation: Conversation
    """The row's messages before its last step."""
    prompt: tuple[int, ...]
    """Token ids of the rendered conversation."""
    expected: tuple[Message, ...]
    """The row's last step."""
    requested: str | None = None
    """The language that the thought should be in."""
    answer: str | None = None
    """The text that the final message should contain."""
    language: str | None = None
    """The language that the final message should be in."""
    kind: str | None = None
    """The row's group in the report."""


@dataclass(frozen=True)
class GradedAnswer:
    """A completion with its parsed messages and its verdicts."""

    completion: Completion
    messages: tuple[ParsedMessage, ...]
    verdicts: dict[str, bool]
    """One entry for each of `MEASURES` that applies to the question."""
    thought_language: str | None = None
    """`LanguageVerdict.language` of the thought."""
    thought_share: float | None = None
    """`LanguageVerdict.share` of the thought."""
    final_language: str | None = None
    """`LanguageVerdict.language` of the final message."""


def questions(
    conversations: Iterable[Conversation], vocabulary: Vocabulary, order: HeaderOrder = "channel-first"
) -> list[Question]:
    """Cut each conversation before its last step and render what stands before it, with headers in this order.

    A row's keys `reasoning_language`, `answer`, `language` and `kind` set the measures that apply and the groups of the
    report. Instead of `reasoning_language`, the instructions may have a line "reasoning language: ...".
    """
    made = []
    for number, conversation in enumerate(conversations, start=1):
        others = [index for index, message in enumerate(conversation.messages) if message.role != "assistant"]
        cut = others[-1] + 1 if others else 0
        asked = replace(conversation, messages=conversation.messages[:cut], rejected=(), others=())
        extra = conversation.extra
        in_instructions = _REQUEST.search(conversation.instructions or "")
        made.append(
            Question(
                number=number,
                source=conversation.source,
                conversation=asked,
                prompt=tuple(render_prompt(asked, vocabulary, order)),
                expected=conversation.messages[cut:],
                requested=_text(extra, "reasoning_language") or (in_instructions and in_instructions.group(1)),
                answer=_text(extra, "answer"),
                language=_text(extra, "language"),
                kind=_text(extra, "kind"),
            )
        )
    return made


def named_languages(asked: Iterable[Question]) -> tuple[str, ...]:
    """Return the candidate languages: all that the questions name, and English, to which thoughts tend to revert.

    Empty if no question names a language.
    """
    named = {name for question in asked for name in (question.requested, question.language) if name}
    return tuple(sorted(named | {"English"})) if named else ()


def grade(question: Question, completion: Completion, vocabulary: Vocabulary, among: Sequence[str]) -> GradedAnswer:
    """Return the completion, parsed and judged by every measure that applies to the question.

    Args:
        among: the candidate languages, from `named_languages`.

    Raises:
        UserError: a language cannot be judged.
    """
    messages = parse(completion.ids, vocabulary)
    thought, final = channel_text(messages, "analysis"), channel_text(messages, "final")
    verdicts: dict[str, bool] = {}
    thought_verdict = final_verdict = None
    if question.requested is not None:
        thought_verdict = judge(thought, question.requested, among)
        verdicts["thought language"] = thought_verdict.ok
    if question.answer is not None:
        verdicts["answer"] = contains(final, question.answer)
    if question.language is not None:
        final_verdict = judge(final, question.language, among)
        # A text without words, such as "84.", has no language and is correct in any.
        verdicts["answer language"] = final_verdict.ok or (bool(final.strip()) and final_verdict.language is None)
    expected_final = next((message.content for message in question.expected if message.channel == "final"), None)
    expected_call = next((message for message in question.expected if message.recipient is not None), None)
    if expected_call is not None:
        call = next((message for message in messages if message.recipient is not None), None)
        verdicts["call"] = call is not None and _same_call(call.to_message(), expected_call)
    elif question.answer is None and expected_final is not None:
        verdicts["exact match"] = normalise(final) == normalise(expected_final)
    verdicts["well-formed"] = is_well_formed(messages, calls=bool(question.conversation.tools))
    return GradedAnswer(
        completion=completion,
        messages=tuple(messages),
        verdicts=verdicts,
        thought_language=thought_verdict.language if thought_verdict else None,
        thought_share=thought_verdict.share if thought_verdict else None,
        final_language=final_verdict.language if final_verdict else None,
    )


def channel_text(messages: Iterable[ParsedMessage], channel: str) -> str:
    """Return the assistant's text on a channel, without tool calls. Messages are joined by newlines."""
    return "\n".join(m.content for m in messages if m.channel == channel and m.role == "assistant" and not m.recipient)


def is_well_formed(messages: Sequence[ParsedMessage], *, calls: bool = False) -> bool:
    """Return whether a completion has the Harmony format of the training data.

    Args:
        calls: whether a tool call may end the completion.
    """
    if not messages or any(m.repairs or not m.complete or m.role != "assistant" for m in messages):
        return False
    *before, last = messages
    if any(m.channel == "final" for m in before):
        return False
    if calls and last.recipient is not None:
        return last.stop == CALL
    return last.channel == "final" and last.recipient is None and last.stop == RETURN


def contains(text: str, answer: str) -> bool:
    """Return whether `answer` occurs in `text` as a whole token.

    84 occurs in "84 Äpfel.", but not in "184", "84.5" or "-84". Numbers may have separators of thousands, so 1084
    occurs in "1,084".
    """
    wanted = normalise(answer)
    if _NUMBER.fullmatch(wanted):
        return _plain_number(wanted) in map(_plain_number, _NUMBER.findall(normalise(text)))
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalise(text)) is not None


def normalise(text: str) -> str:
    """Return the text in Unicode form NFKC and case-folded, with single spaces for runs of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _plain_number(number: str) -> str:
    if _GROUPED.fullmatch(number):
        decimal = "." if "," in number and (number.rfind(".") > number.rfind(",") or "." not in number) else ","
        number = number.replace("," if decimal == "." else ".", "").replace(decimal, ".")
    return number.replace("−", "-").replace(",", ".")


def _same_call(call: Message, expected: Message) -> bool:
    if call.recipient != expected.recipient:
        return False
    try:
        return bool(json.loads(call.content) == json.loads(expected.content))
    except ValueError:
        return call.content == expected.content


def _text(extra: Any, key: str) -> str | None:
    value = extra.get(key)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
