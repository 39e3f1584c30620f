"""Random chats in OpenAI's JSON format for the chat template: (messages, tools, arguments of the template).

No text has control tokens, because a template cannot distinguish them from its own.
"""

from __future__ import annotations

import json
import random
from typing import Any

from support import harmony_samples as samples

Chat = dict[str, Any]

THOUGHT_KEYS = ("thinking", "reasoning_content", "reasoning")


def plain(value: Any) -> Any:
    """Return the value without control tokens and without values of the wrong type, which a template cannot handle."""
    if isinstance(value, str):
        return value.replace("<|", "< |")
    if isinstance(value, float) or (isinstance(value, int) and value > 2**64):
        return 1.5
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    strange = {"enum": str, "oneOf": list, "type": (str, list)}
    kept = {key: item for key, item in value.items() if not (key in strange and not isinstance(item, (list, str)))}
    if isinstance(kept.get("oneOf"), str):
        del kept["oneOf"]
    return {plain(key): plain(item) for key, item in kept.items()}


def text(rng: random.Random) -> str:
    return plain(samples.text(rng)).replace("<|", "< |")


def content(rng: random.Random) -> Any:
    """Return a text, sometimes in parts."""
    if rng.random() < 0.8:
        return text(rng)
    return [rng.choice([{"type": "text", "text": text(rng)}, text(rng)]) for _ in range(rng.randint(0, 3))]


def head_text(rng: random.Random) -> str:
    lines = [text(rng), "", "Reasoning: high quality answers", "reasoning effort: very", "x"]
    for line in rng.sample(
        ["Reasoning: high", "  reasoning:LOW ", "REASONING EFFORT: medium\r", ""], rng.randint(0, 2)
    ):
        lines.insert(rng.randint(0, len(lines)), line)
    return "\n".join(lines[: rng.randint(1, len(lines))])


def thoughts(rng: random.Random) -> Chat:
    if rng.random() < 0.4:
        return rng.choice([{}, {"thinking": None}, {"reasoning_content": None, "thinking": ""}])
    return {rng.choice(THOUGHT_KEYS): text(rng) or "hm"}


def call(rng: random.Random, functions: list[str], builtin: list[str], id: str | None) -> Chat:
    names = [f"functions.{name}" if rng.random() < 0.1 else name for name in functions]
    names += ["python"] * ("python" in builtin) + ["browser.search", "browser.open"] * ("browser" in builtin)
    name = rng.choice(names)
    if name == "python":
        given: Any = rng.choice([{"code": text(rng)}, "print(1)\nx = ", {"source": text(rng)}])
    else:
        given = {"query": text(rng), "n": rng.choice([1, None, [2.5, True]])}
        given = rng.choice([given, json.dumps(given), {}, None])
    made: Chat = {"type": "function", "function": {"name": name, "arguments": given}}
    return made if id is None else {"id": id, **made}


def result_for(rng: random.Random, made: Chat) -> Chat:
    id, name = made.get("id"), made["function"]["name"]
    out: Chat = {"role": "tool", "content": rng.choice([content(rng), None, {"t": 4, "ü": [None, "x"]}, 7])}
    if id is not None:
        out["tool_call_id"] = id
    if id is None or rng.random() < 0.3:
        out["name"] = name
    if rng.random() < 0.1:
        out |= {"channel": rng.choice(["commentary", "analysis"]), "recipient": rng.choice([None, "assistant", "x"])}
    return out


def calls_and_results(rng: random.Random, functions: list[str], builtin: list[str]) -> list[Chat]:
    if rng.random() < 0.15 and functions:  # the older form
        function = call(rng, functions, [], None)["function"]
        result = {"role": "function", "name": function["name"], "content": text(rng)}
        return [{"role": "assistant", "content": None, "function_call": function, **thoughts(rng)}, result]
    with_ids = rng.random() < 0.8
    made = [
        call(rng, functions, builtin, f"c{rng.random()}" if with_ids else None) for _ in range(rng.choice([1, 1, 2, 3]))
    ]
    order = rng.sample(made, rng.choice([len(made), len(made), rng.randint(0, len(made))]))
    said = rng.choice([{}, {"content": None}, {"content": ""}, {"content": content(rng)}])
    weight = rng.choice([{}, {"weight": 0}, {"weight": 1}])
    message = {"role": "assistant", "tool_calls": made, **said, **thoughts(rng), **weight}
    return [message, *(result_for(rng, item) for item in order)]


def given(rng: random.Random) -> list[Chat]:
    """Return messages that name their channel or recipient."""
    to = rng.choice(["functions.f", "python", "user", "all"])
    called = {"role": "assistant", "content": text(rng), "channel": rng.choice(["analysis", "commentary"])}
    called |= {"recipient": to, "content_type": rng.choice([None, "code", "<|constrain|>json"]), **thoughts(rng)}
    result = {"role": "tool", "content": text(rng), **rng.choice([{}, {"name": to, "channel": "analysis"}])}
    raw = {"role": "tool", "name": "weather.now", "recipient": "assistant", "channel": "commentary", "content": "x"}
    alone = [
        {"role": "assistant", "content": text(rng), "channel": rng.choice(["analysis", "commentary", "final"])},
        {"role": "assistant", "content": text(rng), "recipient": "all", "channel": None},
        {"role": "assistant", "content": text(rng), "name": "deputy", "content_type": "text"},
        {"role": "user", "content": text(rng), "recipient": "assistant", "name": "bob"},
        {"role": "system", "content": text(rng), "channel": "commentary"},
        {"role": "assistant", "content": None, "refusal": "No."},
        raw,
    ]
    return rng.choice([[called, result], [called], [called, raw], [rng.choice(alone)], [rng.choice(alone)]])


def turn(rng: random.Random, functions: list[str], builtin: list[str]) -> list[Chat]:
    out: list[Chat] = [{"role": "user", "content": content(rng), **rng.choice([{}, {"name": "bob"}, {"name": None}])}]
    if rng.random() < 0.15:
        out.append({"role": rng.choice(["system", "developer"]), "content": content(rng)})
    if rng.random() < 0.2:
        out += given(rng)
    for _ in range(rng.choice([0, 0, 1, 2])):
        if rng.random() < 0.2:
            out.append({"role": "assistant", "content": None, "thinking": text(rng) or "hm"})
        if functions or builtin:
            out += calls_and_results(rng, functions, builtin)
    if rng.random() < 0.9:
        empty = rng.choice([{}, {"tool_calls": None, "refusal": None, "function_call": None}, {"tool_calls": []}])
        out.append({"role": "assistant", "content": content(rng), **thoughts(rng), **empty})
    return out


def chat(rng: random.Random) -> tuple[list[Chat], list[Chat] | None, Chat]:
    """Return a random chat. Its last message is an answer, a call, a result or a user message."""
    functions = [samples.name(rng) for _ in range(rng.choice([0, 0, 1, 3]))]
    tools = [tool(rng, name) for name in functions] or None
    builtin = rng.choice([[], [], ["python"], ["browser"], ["python", "browser"]])
    messages: list[Chat] = [
        {"role": rng.choice(["system", "developer"]), "content": head_text(rng)}
        for _ in range(rng.choice([0, 1, 1, 2]))
    ]
    for _ in range(rng.randint(1, 3)):
        messages += turn(rng, functions, builtin)
    arguments: Chat = {"builtin_tools": builtin} if builtin else {}
    options = {
        "model_identity": "I am.",
        "reasoning_effort": "low",
        "current_date": "2026-01-31",
        "knowledge_cutoff": "2025-01",
        "response_format": rng.choice([format(rng), [format(rng), format(rng)], {"type": "json_object"}]),
    }
    return messages, tools, arguments | {key: value for key, value in options.items() if rng.random() < 0.25}


def tool(rng: random.Random, name: str) -> Chat:
    parameters = rng.choice([plain(samples.object_schema(rng)), {"type": "object", "properties": {}}, None])
    description = rng.choice(["One line.", "Two\nlines", "", "Three\r\nlines\n", None])
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def format(rng: random.Random) -> Chat:
    schema = plain(samples.object_schema(rng))
    body = {"name": samples.name(rng), "schema": schema, **rng.choice([{}, {"description": "What\nfor"}])}
    return rng.choice([{"type": "json_schema", "json_schema": body}, {"type": "json_schema", **body}])
