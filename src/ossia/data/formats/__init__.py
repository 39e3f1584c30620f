"""Row formats, recognised by their keys and converted to conversations. docs/formats.md describes each.

    reading        the result of reading a row: chat messages with their places in the row
    row            the common parts of all formats: column names, settings of a row, further keys
    dialects       conversion of variants of chat messages, such as other role names, to OpenAI's form
    think          separation of <think> text from an assistant's answer, in any format
    messages       openai, multilingual-thinking, prompt-completion, alpaca
    responses      openai-responses
    harmony_text   harmony
    turns          sharegpt, llama-factory, apigen-mt
    hermes         hermes: calls as XML in the text
    xlam           xlam: one question and its calls
    glaive         glaive: a conversation as one text
    traces         openthoughts, openr1
    preference     openai-preference, trl-preference

To add a format, write a module with a `RowFormat`, add it to `ORDER`, and add a sample to examples/formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ossia.config import DataSection, Format
from ossia.data.formats import glaive, harmony_text, hermes, messages, preference, responses, traces, turns, xlam
from ossia.data.formats.dialects import plain_tools
from ossia.data.formats.reading import Misfit, Reading, RowFormat
from ossia.data.formats.row import (
    RowSettings,
    extra_of,
    faulty_columns,
    ignored_columns,
    in_the_row,
    renamed,
    settings_of,
    under_column_names,
)
from ossia.data.formats.think import with_thoughts
from ossia.errors import OnProblem, Problem, UserError, raise_errors
from ossia.harmony.conversation import Conversation, Message, OtherAnswer, SystemSettings
from ossia.harmony.from_openai import conversation_from_chat

ORDER: tuple[RowFormat, ...] = (  # the most specific format first: the first match is the format of a row
    *preference.FORMATS,
    *traces.FORMATS,
    *hermes.FORMATS,
    *turns.FORMATS,
    *xlam.FORMATS,
    *messages.FORMATS[:2],
    *responses.FORMATS,
    *harmony_text.FORMATS,
    *glaive.FORMATS,
    *messages.FORMATS[2:],
)
_BY_NAME = {format.name: format for format in ORDER}


def detect(row: Mapping[str, Any], settings: DataSection = DataSection()) -> Format:
    """Return the format of a row: `settings.format`, or if that is `auto`, the first format that its keys match.

    The keys are those after the renaming by `settings.columns`.

    Raises:
        UserError: the row has no known format, or lacks a column of `settings.columns`. The message lists its keys.
    """
    if settings.format != "auto":
        return settings.format
    for problem in faulty_columns(row, settings.columns):
        raise problem.to_error()
    known = renamed(row, settings.columns)
    for format in ORDER:
        if format.matches(known):
            return format.name
    raise UserError(
        f"Unknown row format with the keys {', '.join(map(str, known)) or '(none)'}"
        + (" (after data.columns)" if settings.columns else ""),
        do='write {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        ' or {"prompt": "...", "completion": "..."}, or map the columns to such keys:'
        " --set 'data.columns={quiz: prompt, reply: completion}'",
    )


def to_conversation(
    row: Mapping[str, Any], settings: DataSection = DataSection(), source: str = "", report: OnProblem = raise_errors
) -> Conversation:
    """Return the conversation of a row. This is `convert_row` without the format."""
    return convert_row(row, settings, source, report)[0]


def convert_row(
    row: Mapping[str, Any], settings: DataSection = DataSection(), source: str = "", report: OnProblem = raise_errors
) -> tuple[Conversation, str]:
    """Return the conversation of a row, and the name of its format.

    The format is "" if the row does not fit `settings.columns`. After an error the conversation may be incomplete or
    empty.

    Args:
        source: the place of the row, such as `data.jsonl:17`.
        report: gets every problem. By default errors are raised as UserError.

    Raises:
        UserError: the row has no known format, or not the form of its format.
    """
    if faults := faulty_columns(row, settings.columns):
        for problem in faults:
            report(problem)
        return Conversation((), source=source), ""
    format = _BY_NAME[detect(row, settings)]
    try:
        made = _read(row, format, settings, source, under_column_names(report, settings.columns))
        return made, format.name
    except Misfit as misfit:
        keys = ", ".join(map(str, row)) or "(none)"
        raise UserError(f"Not a row of the format {format.name}: {misfit}; keys: {keys}") from misfit
    except RecursionError:
        report(Problem("error", "too-deep", "the row is nested more deeply than Python can follow"))
        return Conversation((), source=source), format.name


def _read(
    row: Mapping[str, Any], format: RowFormat, settings: DataSection, source: str, report: OnProblem
) -> Conversation:
    row = renamed(row, settings.columns)
    reading = format.read(row, report)
    reading.tools = plain_tools(reading.tools)
    ignored_columns(row, reading, report)
    extra = extra_of(row, format.keys | reading.used)
    if reading.literal is not None:
        return Conversation(reading.literal, system=None, source=source, extra=extra)
    convert = _converter(reading, settings_of(row, reading, report), settings, in_the_row(report, reading))
    conversation = convert(reading.messages, reading.paths, True)
    if reading.rejected is not None or reading.others:
        conversation = _with_alternatives(conversation, reading, convert)
    return replace(conversation, source=source, extra=extra)


_Convert = Callable[[list[Any], list[str], bool], Conversation]


def _converter(reading: Reading, of_row: RowSettings, settings: DataSection, report: OnProblem) -> _Convert:
    """Return a function that converts a list of messages to a conversation.

    Its arguments are the messages, their places, and whether problems are reported. Each problem is reported once, even
    if the same messages are converted several times.
    """
    system = SystemSettings(
        identity=of_row.identity or settings.identity,
        knowledge_cutoff=settings.knowledge_cutoff,
        date=settings.date if of_row.date is None else of_row.date,
        effort=settings.effort,
    )
    builtin = [*settings.builtin_tools, *of_row.builtin_tools]
    told: set[Problem] = set()

    def tell(problem: Problem) -> None:
        if problem not in told:
            told.add(problem)
            report(problem)

    def convert(messages: list[Any], paths: list[str], loud: bool) -> Conversation:
        tell_or_not = tell if loud else _ignore
        return conversation_from_chat(
            [with_thoughts(message, path, tell_or_not) for message, path in zip(messages, paths, strict=True)],
            reading.tools,
            system=system,
            effort=of_row.effort,
            builtin_tools=builtin,
            response_format=reading.response_format,
            report=tell_or_not,
            paths=paths,
        )

    return convert


def _with_alternatives(conversation: Conversation, reading: Reading, convert: _Convert) -> Conversation:
    """Return the conversation with the other answers to its prompt, each without the messages of the prompt."""
    prompt, paths = reading.messages[: reading.prompt], reading.paths[: reading.prompt]
    shared = len(convert(prompt, paths, False).messages)

    def added(answer: Reading, loud: bool) -> tuple[Message, ...]:
        return convert(prompt + answer.messages, paths + answer.paths, loud).messages[shared:]

    return replace(
        conversation,
        rejected=added(reading.rejected, True) if reading.rejected is not None else (),
        # A fault in an answer that is not trained is not a fault of the row.
        others=tuple(OtherAnswer(added(answer, False), score) for answer, score in reading.others),
        score=reading.score,
        prompt=shared,
    )


def _ignore(_: Problem) -> None: ...
