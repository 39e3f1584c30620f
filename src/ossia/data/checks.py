"""The problems of one row, each with its place and remedy. The checks across rows are in `corpus`.

Codes of errors (the row is left out):
    not-json  not-an-object  unknown-format  column  too-deep  unknown-role  unknown-channel  header  not-text  tools
    unknown-builtin  response-format  call-without-name  call-not-json  arguments-not-json  result-without-call  weight
    internal  history  no-prompt  no-alternative  no-correct-trace  harmony-text  nothing-to-train
Codes of warnings:
    last-not-assistant  unfinished-turn  empty-final  no-thought  thought-misplaced  think-in-text  unclosed-think
    foreign-markup  special-tokens  lone-surrogate  name  ignored-column  effort  tools  call-without-result
    several-calls  undeclared-tool  tool-schema  tool-type  arguments-schema  responses-item  harmony-repaired
    equal-alternatives  prompt-differs  rejected  too-long  duplicate  near-duplicate  leak  effort-length
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from ossia.config import DataSection
from ossia.data.kinds import CALLS, THINKING, UNFINISHED, MessageKind, kinds_of, turns_of
from ossia.errors import Problem
from ossia.harmony.conversation import Conversation, Message
from ossia.harmony.tokenizer.files import SPECIAL_TOKENS

_SPECIAL = re.compile("|".join(re.escape(text) for text in SPECIAL_TOKENS.values()))
_FOREIGN = re.compile(
    r"<\|im_(?:start|end)\|>|\[/?INST\]|</s>\s*\Z|</?tool_call>|</?thinking>|\[/?THINK\]|<\|begin_of_\w+\|>"
    r"|<\|e(?:ot_id|nd_of_turn)\|>|<(?:start|end)_of_turn>|<functioncall>"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_conversation(conversation: Conversation, settings: DataSection = DataSection()) -> list[Problem]:
    """Return the problems of one converted row, without their file and line (see `place`)."""
    messages = conversation.messages
    kinds = kinds_of(messages)
    turns = turns_of(kinds)
    if not any(message.role == "assistant" and message.weight != 0 for message in messages):
        what = "nothing to train: the row has no assistant message" + (" with a weight above 0" if turns else "")
        return [Problem("error", "nothing-to-train", what, "end the row with an assistant message")]
    return [
        *_order(messages, kinds, turns),
        *_thoughts(messages, kinds, turns[-1:] if settings.turns == "last" else turns),
        *_texts(conversation),
        *(() if CALLS.isdisjoint(kinds) else _calls(conversation, kinds)),
    ]


def _order(messages: tuple[Message, ...], kinds: str, turns: list[tuple[int, int]]) -> Iterator[Problem]:
    """Yield warnings about turns without an answer, misplaced thoughts and empty answers."""
    last = messages[-1]
    if last.role != "assistant":
        yield _warning("last-not-assistant", f"the last message is of role {last.role}: nothing answers it", last)
    before_that = -1
    for start, stop in turns:
        end = messages[stop - 1]
        if kinds[stop - 1] in UNFINISHED:
            if set(kinds[start:stop]) == {MessageKind.THOUGHT} and before_that == start:
                what, do = "a thought after its answer: nobody reads it", "put it before the answer"
                yield _warning("thought-misplaced", what, end, do)
            else:
                what = "the turn has no answer and no call"
                yield _warning("unfinished-turn", what, end, "give the assistant message a content")
        before_that = stop
    answer = MessageKind.ANSWER
    for message, kind in zip(messages, kinds, strict=True):
        if kind == answer and message.weight != 0 and not message.content.strip():
            what = "an answer is empty: the model learns to say nothing"
            yield _warning("empty-final", what, message, "fill it or remove the row")


def _thoughts(messages: tuple[Message, ...], kinds: str, turns: list[tuple[int, int]]) -> Iterator[Problem]:
    """Yield a warning if trained turns have no chain of thought."""
    trained = [turn for turn in turns if any(_is_trained(message) for message in messages[slice(*turn)])]
    without = [turn for turn in trained if THINKING.isdisjoint(kinds[slice(*turn)])]
    if without:
        some = len(without) < len(trained)
        which = f"{len(without)} of {len(trained)} trained turns have " if some else ""
        do = "add `thinking`" + (", or train the last turn only: data.turns=last" if without[-1] < trained[-1] else "")
        what = f"{which}no chain of thought: the model learns to answer without thinking"
        yield _warning("no-thought", what, messages[without[0][1] - 1], do)


def _is_trained(message: Message) -> bool:
    return message.role == "assistant" and message.weight != 0


def without_dangling_calls(conversation: Conversation) -> tuple[Conversation, list[Problem]]:
    """Return the conversation without calls that have no result before the assistant's next message, and warnings.

    The model stops after `<|call|>`, and a server continues only with a result. So the model never samples a message
    that directly follows a call. A call at the end of a conversation, or before a message of the user, stays.
    """
    messages = conversation.messages
    dangling = {
        index
        for index, (message, follower) in enumerate(itertools.pairwise(messages))
        if message.role == "assistant" and message.recipient is not None and follower.role == "assistant"
    }
    if not dangling:
        return conversation, []
    what, do = "a call without a result, after which the assistant goes on: left out", "give the call its tool message"
    problems = [_warning("call-without-result", what, messages[index], do) for index in sorted(dangling)]
    kept = tuple(message for index, message in enumerate(messages) if index not in dangling)
    prompt = conversation.prompt
    prompt = prompt if prompt is None else prompt - sum(index < prompt for index in dangling)
    return dataclasses.replace(conversation, messages=kept, prompt=prompt), problems


def _texts(conversation: Conversation) -> Iterator[Problem]:
    """Yield warnings about control tokens, markup of other formats and lone surrogates in the texts."""
    for message in (*conversation.messages, Message("developer", conversation.instructions or "")):
        text = message.content
        if "<|" in text and (found := _SPECIAL.search(text)):
            what = f"the text contains {found[0]}: trained as plain text"
            yield _warning("special-tokens", what, message, "remove it if it is a leftover")
        elif message.role == "assistant" and (found := _FOREIGN.search(text)):
            what = f"the text contains {found[0].strip()}, markup of another model or format: trained as plain text"
            yield _warning("foreign-markup", what, message, "take it apart, or set the row's format in data.format")
        if not text.isascii() and _SURROGATE.search(text):
            what = "half a surrogate pair in the text becomes U+FFFD"
            yield _warning("lone-surrogate", what, message, r"write both halves: \ud83d\ude00")


def _calls(conversation: Conversation, kinds: str) -> Iterator[Problem]:
    """Yield warnings about calls of undeclared tools, and about arguments that do not fit the tool's schema."""
    declared = {tool.name: tool.parameters for tool in conversation.tools}
    # In raw Harmony text the tools are declared inside the developer message, which stays text.
    literal = conversation.system is None and kinds.startswith(MessageKind.LASTING)
    told: set[str] = set()  # a tool with an invalid schema is reported once
    for message, kind in zip(conversation.messages, kinds, strict=True):
        if kind not in CALLS or not (message.recipient or "").startswith("functions.") or literal:
            continue
        name = str(message.recipient).removeprefix("functions.")
        if name not in declared:
            known = f"declared are {', '.join(declared)}" if declared else "the row declares no tools"
            do = f"add {name} to `tools`: the model must see the tools that it may call"
            yield _warning("undeclared-tool", f"a call of {name}, which is not declared ({known})", message, do)
        elif (schema := declared[name]) is not None and name not in told:
            for problem in _arguments(message, name, schema):
                told |= {name} if problem.code == "tool-schema" else set()
                yield problem


def _arguments(message: Message, name: str, schema: Any) -> Iterator[Problem]:
    try:
        value = json.loads(message.content)
    except (ValueError, RecursionError):  # reported by the format's reader
        return
    try:
        validator = _validator(json.dumps(schema))
    except (ValueError, TypeError, RecursionError) as failure:
        validator = f"{type(failure).__name__}: {failure}"[:120]
    if isinstance(validator, str):
        what = f"the parameters of {name} are not a valid JSON Schema: {validator}"
        yield _warning("tool-schema", what, message, "correct `parameters` of the tool")
        return
    try:
        error = next(validator.iter_errors(value), None)
    except Exception as failure:  # such as a $ref that cannot be resolved, or an invalid regular expression as pattern
        what = f"the parameters of {name} cannot be checked: {str(failure)[:120]}"
        yield _warning("tool-schema", what, message, "correct `parameters` of the tool")
        return
    if error is not None:
        where = f" at {error.json_path}" if error.json_path != "$" else ""
        what = f"the arguments of {name} do not fit its schema{where}: {error.message[:160]}"
        yield _warning("arguments-schema", what, message, "correct the arguments or the schema")


@functools.lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """Return a validator for a schema in JSON, or the reason (a text) why the schema is invalid."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    parsed = _nullable(json.loads(schema))
    kind = validator_for(parsed, default=Draft202012Validator)
    try:
        kind.check_schema(parsed)
    except SchemaError as error:
        return error.message[:120]
    return kind(parsed, registry=Registry())  # an empty registry: a $ref to the network is not followed


def _nullable(schema: Any) -> Any:
    """Return a schema with OpenAPI's `nullable: true` in JSON Schema's terms. The renderer shows it to the model."""
    if isinstance(schema, list):
        return [_nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _nullable(value) for key, value in schema.items()}
    kind = made.get("type")
    if made.get("nullable") is True and isinstance(kind, str):
        made["type"] = [kind, "null"]
        if isinstance(made.get("enum"), list):
            made["enum"] = [*made["enum"], None]
    return made


class Duplicates:
    """A search for exact repeats among the conversations checked so far."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def check(self, content: str, source: str) -> list[Problem]:
        """Return a warning if an earlier call had the same content, and remember the content.

        Args:
            content: a text that is equal for equal conversations.
            source: the place of the row, such as `data.jsonl:17`.
        """
        data = content.encode("utf-8", "surrogatepass")
        first = self._seen.setdefault(hashlib.blake2b(data, digest_size=16).digest(), source)
        if first is source:
            return []
        problem = Problem("warning", "duplicate", f"the same conversation as {first}", "remove one of them")
        return [place(problem, source)]


def place(problem: Problem, source: str) -> Problem:
    """Return the problem with the file and line of a source such as `data.jsonl:17`."""
    file, _, line = source.rpartition(":")
    return dataclasses.replace(problem, file=file or source, line=int(line) if line.isdigit() else 0)


def _warning(code: str, what: str, message: Message, do: str = "") -> Problem:
    return Problem("warning", code, what, do, message.place)
