"""The single repairs. Each changes a row at the place of a problem and returns a description of the change, or None.

`IN_PLACE` repairs change a value in its place. Repeating one changes nothing more. `STRUCTURAL` repairs remove a
message or a call from its list. They never remove a column of the row, or one half of a pair.
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
"""A function of a row, which it changes, and a problem. It returns a description of the change, or None."""

_NAMES = {
    **{name: role for name, role in ROLE_OF.items() if role not in ("tool", "call")},
    **dict.fromkeys(("ai", "agent"), "assistant"),
    **dict.fromkeys(("person", "customer"), "user"),
    # Too short for a guess by similarity.
    **dict.fromkeys(("usr", "uer", "uesr", "usre", "usser", "useer", "userr"), "user"),
}
_GUESSED = ("assistant", "system")
_NEAR = 0.88  # of difflib's ratio. It permits one or two wrong letters in `assistant` and one in `system`
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS.values())))
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|endofprompt|>", "<|im_end|>", "<|eot_id|>", "</s>")
_BEGINNINGS = ("<|startoftext|>", "<|endoftext|>", "<|begin_of_text|>", "<s>")
_COMMA_OR_STRING = re.compile(r'"(?:\\.|[^"\\])*(?:"|\\?\Z)|,\s*(?=[}\]])', re.DOTALL)
_WEIGHT = re.compile(r"[01]|[01]?\.\d{1,20}|[01]\.")
_ARGUMENTS = ("arguments", "parameters", "input")
_ANSWERS = ("content", "value", "text", "refusal", "tool_calls", "function_call")


def without_trailing_commas(text: str) -> str:
    """Return a JSON text without the commas before closing brackets. Strings are unchanged."""
    return _COMMA_OR_STRING.sub(lambda found: "" if found[0].startswith(",") else found[0], text)


# ---------------------------------------------------------------------------------------------------------- in place


def role_named(name: str) -> str | None:
    """Return the role for another spelling or name of it, or None if the role is uncertain.

    The result is never `tool`, because another repair would remove a tool message without a call.
    """
    word = name.strip().lower()
    if word in _NAMES or word in ROLE_OF:
        return _NAMES.get(word)
    near = difflib.get_close_matches(word, _GUESSED, n=1, cutoff=_NEAR) if word.isascii() and word.isalpha() else []
    # A longer word such as `assistants` can have another meaning.
    return near[0] if near and not word.startswith(near[0]) else None


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
    for place in (f"{base}.function", base):  # the object `function` is optional in a call
        found = _find(row, place)
        call: Any = found[0][found[1]] if found is not None else None
        for key in _ARGUMENTS if isinstance(call, dict) else ():
            if isinstance(text := call.get(key), str) and (rewritten := _object_in(text)) is not None:
                call[key] = rewritten
                return "arguments rewritten as JSON"
    return None


def _object_in(text: str) -> str | None:
    """Return the JSON of an object that is almost JSON, or None if it is valid already or not an object."""
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
    """Remove control tokens at the ends of a text, which are leftovers of another template.

    A text with control tokens inside is not changed, because they may be its subject.
    """
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
    """Return the text without control tokens at its beginning and end, and without the white space around them.

    The run time is linear in the length of the text.
    """
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
    """Remove a tool result without a call. With no more results than calls, an id may be wrong, so it stays."""
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
    """Return whether a message contains tool results in parts or in tags. Other content would be lost with it."""
    said = message.get("content", message.get("value"))
    if isinstance(said, list):
        return any(isinstance(part, dict) and part.get("type") == "tool_result" for part in said)
    return isinstance(said, str) and said.count("<tool_response>") > 1


def _call(row: Any, problem: Problem) -> str | None:
    """Remove one of several parallel calls. Other paths stand for a whole turn, which stays."""
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
    """Remove a message that has only a thought. A message with any other content may be the answer, and stays."""
    place = _message(row, problem.path)
    if place is None or any(place[0][place[1]].get(key) not in (None, "", []) for key in _ANSWERS):
        return None
    del place[0][place[1]]
    return "a turn without an answer: removed"


# ------------------------------------------------------------------------------------------------------------ places


def _find(row: Any, path: str) -> tuple[Any, Any] | None:
    """Return the container and the key for a path such as `messages[2].role`, or None if it is not in the row."""
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
    """Return the container and the name of a field of a message or call, or None if the field is missing.

    The path may lead to the field, to the message or call, or to the text of the message (`conversations[2].value`).
    """
    found = _find(row, path)
    if found is None:
        return None
    holder, key = found
    if isinstance(holder[key], dict):
        holder = holder[key]
    return (holder, name) if isinstance(holder, dict) and holder is not row and name in holder else None


def _message(row: Any, path: str) -> tuple[list[Any], int] | None:
    """Return the list and the index of the message at a path such as `messages[3]` or `conversations[2].value`."""
    named = re.fullmatch(r"([^\[\]]+\[\d+\])(?:\.[^.\[\]]+)?", path)
    found = _find(row, named[1]) if named else None
    item = found[0][found[1]] if found is not None and isinstance(found[0], list) else None
    # An item with input and output has a question and its answer, so it is not one message.
    if not isinstance(item, dict) or {"input", "output"} <= item.keys():
        return None
    return found


IN_PLACE: dict[str, Repair] = {
    "unknown-role": _role,
    "arguments-not-json": _arguments,
    "weight": _weight,
    "special-tokens": _specials,
    "lone-surrogate": _surrogates,
}
"""Code of a problem -> the repair of the value at its place."""

STRUCTURAL: dict[str, Repair] = {
    "result-without-call": _orphan,
    "call-without-result": _call,
    "last-not-assistant": _drop("a last message that nothing answers: removed"),
    "unfinished-turn": _thought_alone,
    "empty-final": _drop("an empty answer: removed"),
}
"""Code of a problem -> the removal of the message or call at its place."""
