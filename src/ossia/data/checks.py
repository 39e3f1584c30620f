"""What is wrong with one row, with the place and the remedy. What several rows show together is in `corpus`.

Codes of errors (the row is left out):
    not-json  not-an-object  unknown-format  column  too-deep  unknown-role  unknown-channel  header  not-text  tools
    unknown-builtin  response-format  call-without-name  call-not-json  arguments-not-json  result-without-call  weight
    effort  history  no-prompt  no-alternative  no-correct-trace  harmony-text  nothing-to-train
Codes of warnings:
    last-not-assistant  unfinished-turn  empty-final  no-thought  thought-misplaced  think-in-text  unclosed-think
    special-tokens  lone-surrogate  call-without-result  several-calls  undeclared-tool  tool-schema  tool-type
    arguments-schema  responses-item  harmony-repaired  equal-alternatives  prompt-differs  rejected  too-long
    duplicate  near-duplicate  leak  effort-length
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from ossia.data.examples import kinds_of, turns_of
from ossia.harmony.conversation import Conversation, Message
from ossia.harmony.problem import Problem
from ossia.harmony.tokenizer_files import SPECIAL_TOKENS

_SPECIAL = re.compile("|".join(re.escape(text) for text in SPECIAL_TOKENS.values()))
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_conversation(conversation: Conversation) -> list[Problem]:
    """Problems of one converted row, without their file and line (see `place`)."""
    messages = conversation.messages
    kinds = kinds_of(messages)
    turns = turns_of(kinds)
    if not any(message.role == "assistant" and message.weight != 0 for message in messages):
        what = "nothing to train: the row has no assistant message" + (" with a weight above 0" if turns else "")
        return [Problem("error", "nothing-to-train", what, "end the row with an assistant message")]
    return [
        *_order(messages, kinds, turns),
        *_texts(conversation),
        *(_calls(conversation, kinds) if "c" in kinds or "A" in kinds else ()),
    ]


def _order(messages: tuple[Message, ...], kinds: str, turns: list[tuple[int, int]]) -> Iterator[Problem]:
    """What the sequence of messages lacks."""
    last = messages[-1]
    if last.role != "assistant":
        yield _warning("last-not-assistant", f"the last message is of role {last.role}: nothing answers it", last)
    before_that = -1
    for start, stop in turns:
        end = messages[stop - 1]
        if kinds[stop - 1] in "ap":
            if set(kinds[start:stop]) == {"a"} and before_that == start:
                what, do = "a thought after its answer: nobody reads it", "put it before the answer"
                yield _warning("thought-misplaced", what, end, do)
            else:
                what = "the turn has no answer and no call"
                yield _warning("unfinished-turn", what, end, "give the assistant message a content")
        before_that = stop
    if not any(kind in "aA" for kind in kinds):
        what = "no chain of thought: the model learns to answer without thinking"
        yield Problem("warning", "no-thought", what, "add `thinking`")
    for message, kind in zip(messages, kinds, strict=True):
        if kind == "f" and message.weight != 0 and not message.content.strip():
            what = "an answer is empty: the model learns to say nothing"
            yield _warning("empty-final", what, message, "fill it or remove the row")


def _texts(conversation: Conversation) -> Iterator[Problem]:
    """What stands in the texts and should not."""
    for message in (*conversation.messages, Message("developer", conversation.instructions or "")):
        text = message.content
        if "<|" in text and (found := _SPECIAL.search(text)):
            what = f"the text contains {found[0]}: trained as plain text"
            yield _warning("special-tokens", what, message, "remove it if it is a leftover")
            return
        if not text.isascii() and _SURROGATE.search(text):
            what = "half a surrogate pair in the text becomes U+FFFD"
            yield _warning("lone-surrogate", what, message, r"write both halves: \ud83d\ude00")


def _calls(conversation: Conversation, kinds: str) -> Iterator[Problem]:
    """Calls of tools that are not declared, and arguments that their schema does not allow."""
    declared = {tool.name: tool.parameters for tool in conversation.tools}
    literal = conversation.system is None and kinds[:1] == "s"  # raw Harmony text announces its tools itself
    for message, kind in zip(conversation.messages, kinds, strict=True):
        if kind not in "cA" or not (message.recipient or "").startswith("functions.") or literal:
            continue
        name = str(message.recipient).removeprefix("functions.")
        if name not in declared:
            known = f"declared are {', '.join(declared)}" if declared else "the row declares no tools"
            do = f"add {name} to `tools`: the model must see what it may call"
            yield _warning("undeclared-tool", f"a call of {name}, which is not declared ({known})", message, do)
        elif (schema := declared[name]) is not None:
            yield from _arguments(message, name, schema)


def _arguments(message: Message, name: str, schema: Any) -> Iterator[Problem]:
    try:
        value = json.loads(message.content)
        validator = _validator(json.dumps(schema))
    except ValueError:  # reported where it was read
        return
    if isinstance(validator, str):
        what = f"the parameters of {name} are no valid JSON Schema: {validator}"
        yield _warning("tool-schema", what, message, "mend `parameters` of the tool")
        return
    try:
        error = next(validator.iter_errors(value), None)
    except Exception as failure:  # an unresolvable $ref, a pattern that is no regular expression
        what = f"the parameters of {name} cannot be checked: {str(failure)[:120]}"
        yield _warning("tool-schema", what, message, "mend `parameters` of the tool")
        return
    if error is not None:
        where = f" at {error.json_path}" if error.json_path != "$" else ""
        what = f"the arguments of {name} do not fit its schema{where}: {error.message[:160]}"
        yield _warning("arguments-schema", what, message, "mend the arguments or the schema")


@functools.lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    """A validator for a schema given as JSON, or the reason why it is none."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    parsed = json.loads(schema)
    kind = validator_for(parsed, default=Draft202012Validator)
    try:
        kind.check_schema(parsed)
    except SchemaError as error:
        return error.message[:120]
    return kind(parsed, registry=Registry())  # an empty registry: a $ref to the network is not followed


class Duplicates:
    """Finds conversations that were there before."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def check(self, content: str | bytes, source: str) -> list[Problem]:
        """A warning if the same content came before, under whatever name."""
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        first = self._seen.setdefault(hashlib.blake2b(data, digest_size=16).digest(), source)
        if first is source:
            return []
        problem = Problem("warning", "duplicate", f"the same conversation as {first}", "remove one of them")
        return [place(problem, source)]


def place(problem: Problem, source: str) -> Problem:
    """The same problem with file and line, taken from a source such as `data.jsonl:17`."""
    file, _, line = source.rpartition(":")
    return dataclasses.replace(problem, file=file or source, line=int(line) if line.isdigit() else 0)


def _warning(code: str, what: str, message: Message, do: str = "") -> Problem:
    return Problem("warning", code, what, do, message.place)
