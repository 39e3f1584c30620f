"""The single repairs: each changes a row at a problem's place and says what it did, or returns None.

`IN_PLACE` repairs change a value in its place, and a second time changes nothing more. `STRUCTURAL` repairs remove a
message or a call from its list. They remove nothing else: no column of the row, and no half of a pair.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from typing import Any

from ossia.data.formats.dialects import ROLE_OF
from ossia.data.loose_json import loads_loosely
from ossia.errors import Problem
from ossia.harmony.tokenizer.files import SPECIAL_TOKENS

Repair = Callable[[Any, Problem], str | None]

_NAMES = {
    **{name: role for name, role in ROLE_OF.items() if role not in ("tool", "call")},
    **dict.fromkeys(("ai", "agent"), "assistant"),
    **dict.fromkeys(("person", "customer"), "user"),
    **dict.fromkeys(("usr", "uer", "uesr", "usre", "usser", "useer", "userr"), "user"),  # too short to be guessed
}
_GUESSED = ("assistant", "system")
_NEAR = 0.88  # of difflib's ratio: a letter or two of `assistant`, one of `system`
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS.values())))
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|endofprompt|>", "<|im_end|>", "<|eot_id|>", "</s>")
_BEGINNINGS = ("<|startoftext|>", "<|endoftext|>", "<|begin_of_text|>", "<s>")
_COMMA_OR_STRING = re.compile(r'"(?:\\.|[^"\\])*(?:"|\\?\Z)|,\s*(?=[}\]])', re.DOTALL)
_WEIGHT = re.compile(r"[01]|[01]?\.\d{1,20}|[01]\.")
_ARGUMENTS = ("arguments", "parameters", "input")
_ANSWERS = ("content", "value", "text", "refusal", "tool_calls", "function_call")


def without_trailing_commas(text: str) -> str:
    """JSON without the commas before a closing bracket. What stands within strings stays."""
    return _COMMA_OR_STRING.sub(lambda found: "" if found[0].startswith(",") else found[0], text)


# ---------------------------------------------------------------------------------------------------------- in place


def role_named(name: str) -> str | None:
    """The role that is meant by another spelling or name; None where that would be a guess.

    Never that of a tool: a result without a call would then be removed.
    """
    word = name.strip().lower()
    if word in _NAMES or word in ROLE_OF:
        return _NAMES.get(word)
    near = difflib.get_close_matches(word, _GUESSED, n=1, cutoff=_NEAR) if word.isascii() and word.isalpha() else []
    return near[0] if near and not word.startswith(near[0]) else None  # `assistants`, `assistantb` mean something


def _role(row: Any, problem: Problem) -> str | None:
    found = _find(row, problem.path)
    if found is None or not isinstance(before := found[0][found[1]], str):
        return None
    holder, key = found
    after = role_named(before)
    if after is None or after == before:
        return None
    holder[key] = after
    return f"role {before!r} -> {after!r}"


def _arguments(row: Any, problem: Problem) -> str | None:
    base = problem.path.removesuffix(".function.arguments")
    for place in (f"{base}.function", base):  # a call may do without the object `function`
        found = _find(row, place)
        call: Any = found[0][found[1]] if found is not None else None
        for key in _ARGUMENTS if isinstance(call, dict) else ():
            if isinstance(text := call.get(key), str) and (rewritten := _object_in(text)) is not None:
                call[key] = rewritten
                return "arguments rewritten as JSON"
    return None


def _object_in(text: str) -> str | None:
    """The JSON of an object that is written nearly so; None where it is written well, or means something else."""
    for attempt in (text, without_trailing_commas(text), f"{{{text}}}"):
        try:
            value = loads_loosely(attempt)
            if isinstance(value, str):  # JSON text of a JSON text
                value = loads_loosely(value)
            if isinstance(value, dict) and all(isinstance(key, str) for key in value):
                return None if _is_object(text) else json.dumps(value, ensure_ascii=False)
        except (ValueError, TypeError, RecursionError):
            continue
    return None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _weight(row: Any, problem: Problem) -> str | None:
    found = _field(row, problem.path, "weight")
    if found is None:
        return None
    holder, key = found
    before = holder[key]
    after: int | float | None = None
    if isinstance(before, bool):
        after = int(before)
    elif isinstance(before, str):
        word = before.strip().lower()
        after = {"true": 1, "false": 0}.get(word)
        if after is None and _WEIGHT.fullmatch(word) and float(word) <= 1:
            after = int(float(word)) if float(word) in (0, 1) else float(word)
    if after is None:
        return None
    holder[key] = after
    return f"weight {before!r} -> {after}"


def _specials(row: Any, problem: Problem) -> str | None:
    """Control tokens at the ends of a text are leftovers of another template; inside it they may be its subject."""
    found = _find(row, problem.path)
    if found is None:
        return None
    holder, key = found
    if isinstance(holder[key], dict):
        holder = holder[key]
        key = "content" if "content" in holder else "value"
    text = holder.get(key) if isinstance(holder, dict) else holder[key]
    if not isinstance(text, str) or (cleaned := without_ends(text)) == text or _SPECIAL.search(cleaned):
        return None
    holder[key] = cleaned
    return "control tokens at the end of the text removed"


def without_ends(text: str) -> str:
    """The text without control tokens, and white space around these, at its beginning and end. Linear in its length."""
    stop = end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        token = next((token for token in _ENDS if text.endswith(token, 0, end)), None)
        if token is None:
            break
        stop = end = end - len(token)
    if stop < len(text):
        stop = end
    start = 0
    while token := next((token for token in _BEGINNINGS if text.startswith(token, start, stop)), None):
        start += len(token)
        while start < stop and text[start].isspace():
            start += 1
    return text[start:stop]


def _surrogates(row: Any, _: Problem) -> str | None:
    before = dict(row)
    after = _whole(before)
    if after == before:
        return None
    row.clear()
    row.update(after)
    return "halves of surrogate pairs -> U+FFFD"


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        mended = {_whole(key): _whole(item) for key, item in value.items()}
        return mended if len(mended) == len(value) else {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


# -------------------------------------------------------------------------------------------------------- structural


def _drop(what: str) -> Repair:
    """A repair that removes the message at the problem's place, if that is an item of a list."""

    def drop(row: Any, problem: Problem) -> str | None:
        place = _message(row, problem.path)
        if place is None:
            return None
        messages, index = place
        del messages[index]
        return what

    return drop


def _orphan(row: Any, problem: Problem) -> str | None:
    """A result that no call asked for. Where there are as many calls as results, an id is wrong, not the result."""
    place = _message(row, problem.path)
    if place is None or _holds_results(place[0][place[1]]):
        return None
    messages, index = place
    start, stop = index, index + 1
    while start and _is_result(messages[start - 1]):
        start -= 1
    while stop < len(messages) and _is_result(messages[stop]):
        stop += 1
    before = messages[start - 1] if start else None
    calls = before.get("tool_calls") if isinstance(before, dict) else None
    if isinstance(calls, list) and stop - start <= len(calls):
        return None
    del messages[index]
    return "a tool result without a call: removed"


def _is_result(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") in ("tool", "function")


def _holds_results(message: dict[str, Any]) -> bool:
    """Whether several results, or other things beside one, stand in the one message."""
    said = message.get("content", message.get("value"))
    if isinstance(said, list):
        return any(isinstance(part, dict) and part.get("type") == "tool_result" for part in said)
    return isinstance(said, str) and said.count("<tool_response>") > 1


def _call(row: Any, problem: Problem) -> str | None:
    """A parallel call. Where the path does not name it among `tool_calls`, the whole turn stands there: kept."""
    named = re.fullmatch(r"(.+)\.tool_calls\[(\d+)\]", problem.path)
    place = _message(row, named[1]) if named else None
    if named is None or place is None:
        return None
    calls, number = place[0][place[1]].get("tool_calls"), int(named[2])
    if not isinstance(calls, list) or number >= len(calls) or len(calls) < 2:
        return None
    del calls[number]
    return "a parallel call without a result: removed"


def _thought_alone(row: Any, problem: Problem) -> str | None:
    """A turn that is only a thought is of no use; one that says something may be somebody's answer."""
    place = _message(row, problem.path)
    if place is None or any(place[0][place[1]].get(key) not in (None, "", []) for key in _ANSWERS):
        return None
    del place[0][place[1]]
    return "a turn without an answer: removed"


# ------------------------------------------------------------------------------------------------------------ places


def _find(row: Any, path: str) -> tuple[Any, Any] | None:
    """The container and the key that a path such as `messages[2].role` means."""
    keys: list[Any] = [int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)]
    if not keys:
        return None
    holder: Any = row
    for number, key in enumerate(keys):
        if not (isinstance(holder, dict) and key in holder) and not (
            isinstance(holder, list) and isinstance(key, int) and key < len(holder)
        ):
            return None
        if number < len(keys) - 1:
            holder = holder[key]
    return holder, keys[-1]


def _field(row: Any, path: str, name: str) -> tuple[Any, str] | None:
    """A field of a message or call: the path names it, or what has it, or (as in `conversations[2].value`) its text."""
    found = _find(row, path)
    if found is None:
        return None
    holder, key = found
    if isinstance(holder[key], dict):
        holder = holder[key]
    return (holder, name) if isinstance(holder, dict) and holder is not row and name in holder else None


def _message(row: Any, path: str) -> tuple[list[Any], int] | None:
    """The list and the index of the message that a path leads into: `messages[3]`, or `conversations[2].value`."""
    named = re.fullmatch(r"([^\[\]]+\[\d+\])(?:\.[^.\[\]]+)?", path)
    found = _find(row, named[1]) if named else None
    item = found[0][found[1]] if found is not None and isinstance(found[0], list) else None
    if not isinstance(item, dict) or {"input", "output"} <= item.keys():  # no message, or a question with its answer
        return None
    return found


IN_PLACE: dict[str, Repair] = {
    "unknown-role": _role,
    "arguments-not-json": _arguments,
    "weight": _weight,
    "special-tokens": _specials,
    "lone-surrogate": _surrogates,
}
"""Code of a problem -> what mends the value at its place."""

STRUCTURAL: dict[str, Repair] = {
    "result-without-call": _orphan,
    "call-without-result": _call,
    "last-not-assistant": _drop("a last message that nothing answers: removed"),
    "unfinished-turn": _thought_alone,
    "empty-final": _drop("an empty answer: removed"),
}
"""Code of a problem -> what removes the message or call at its place."""
