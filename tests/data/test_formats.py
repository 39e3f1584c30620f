"""Tests of every row format on samples with their expected conversations, and of columns with other names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from ossia.config import DataSection
from ossia.data.formats import ORDER, detect
from ossia.errors import UserError
from ossia.harmony.conversation import (
    Message,
    ResponseFormat,
    ToolDescription,
    answer,
    call,
    preamble,
    thought,
    tool_result,
    user,
)
from ossia.harmony.render import prologue, render_messages
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from support.format_samples import FOLDER, NAMES, SAMPLES, codes, read, rows_of


def test_every_format_has_a_reader_a_sample_and_a_line_in_both_lists() -> None:
    assert sorted(format.name for format in ORDER) == sorted(NAMES)
    assert sorted(path.stem for path in FOLDER.glob("*.jsonl")) == sorted(NAMES)
    for page in (FOLDER / "README.md", FOLDER.parent.parent / "docs" / "formats.md"):
        text = page.read_text(encoding="utf-8")
        assert [name for name in NAMES if f"| `{name}" not in text] == []


@pytest.mark.parametrize(("name", "number"), SAMPLES)
def test_a_sample_row_is_recognised_and_a_fixed_format_reads_the_same(name: str, number: int) -> None:
    row = rows_of(name)[number]
    before = copy.deepcopy(row)
    assert detect(row) == name
    assert read(row) == read(row, format=name)
    assert row == before, "reading changes the row"


MESSAGES: dict[tuple[str, int], list[Message]] = {
    ("openai", 0): [
        user("What does a black ball in the rigging mean?"),
        thought("Day signal: one black ball forward means at anchor."),
        answer("The vessel is at anchor."),
    ],
    ("openai", 1): [  # parallel calls in the order of their results
        user("When is high water at Skagen, and when does the next ferry leave for Læsø?"),
        thought("Two look-ups."),
        preamble("Let me look both up."),
        call("ferry_next", '{"from": "Frederikshavn", "to": "Læsø"}'),
        tool_result("ferry_next", '{"leaves": "14:45"}'),
        call("tide_times", '{"harbour": "Skagen"}'),
        tool_result("tide_times", '{"high": ["05:12", "17:40"]}'),
        answer("High water is at 05:12 and 17:40; the ferry leaves at 14:45."),
    ],
    ("openai", 2): [
        user("Name a knot."),
        answer("Granny knot.", 0.0),
        user("One that holds."),
        thought("A bowline holds and can be untied.", 1.0),
        answer("Bowline.", 1.0),
    ],
    ("openai", 3): [
        user("Tide at Hvide Sande on 3 May?"),
        call("tide_times", '{"harbour": "Hvide Sande", "day": "2025-05-03"}'),
        tool_result("tide_times", "low 09:31"),
        answer("Low water is at 09:31."),
    ],
    ("openai", 4): [
        user("How do I write a thought for R1?"),
        thought("They ask about the tags, so quote them."),
        answer("Put it between `<think>` and `</think>`."),
    ],
    ("openai", 5): [
        user("How deep is the fairway?"),
        thought("I should look at the chart."),
        call("chart", '{"place": "fairway"}'),
        tool_result("chart", "7.5 m"),
        answer("7.5 metres."),
    ],
    ("openai", 6): [  # Anthropic's parts
        user("High water at Ribe?"),
        thought("Look it up."),
        preamble("One moment."),
        call("tide_times", '{"harbour": "Ribe"}'),
        tool_result("tide_times", "03:10"),
        answer("At 03:10."),
    ],
    ("openai", 7): [  # roles by other names, lists as JSON text
        user("High water at Ribe?"),
        call("tide_times", '{"harbour": "Ribe"}'),
        tool_result("tide_times", "03:10"),
        answer("At 03:10."),
    ],
    ("openai-responses", 0): [
        user("Which of the two lighthouses is older, Kullen or Nidingen?"),
        thought("Kullen had a light in 1561.\n\nNidingen came in 1624."),
        answer("Kullen."),
    ],
    ("openai-responses", 1): [  # the thought has precedence over its summary, and outputs follow their calls
        user("Tides at Skagen and Esbjerg?"),
        thought("I need both."),
        preamble("One moment."),
        call("tide_times", '{"harbour": "Skagen"}'),
        tool_result("tide_times", "05:12"),
        call("tide_times", '{"harbour": "Esbjerg"}'),
        tool_result("tide_times", "04:00"),
        answer("Skagen 05:12, Esbjerg 04:00."),
    ],
    ("openai-responses", 2): [user("How much aspirin may my dog have?"), answer("Please ask a vet.")],
    ("openai-responses", 3): [user("A number?"), answer('{"n": 4}')],
    ("openai-responses", 4): [user("Is a fathom six feet?"), thought("Six feet it is."), answer("Yes.")],
    ("multilingual-thinking", 1): [
        user("What is left of the bow called?"),
        thought("Links vom Bug heißt Backbord."),
        answer("Port."),
    ],
    ("prompt-completion", 2): [
        user("Left?"),
        answer("Port.", 0),
        user("Right?"),
        thought("The other side."),
        answer("Starboard."),
    ],
    ("prompt-completion", 3): [user("Is 91 prime?"), thought("91 is 7 times 13."), answer("No.")],
    ("prompt-completion", 4): [user("Which sea is it?\nBornholm lies in the Baltic."), answer("The Baltic.")],
    ("prompt-completion", 5): [user("What holds a ship?"), answer("An anchor.")],
    ("prompt-completion", 6): [user("6 boats of 4 oars: how many oars?"), answer("6 * 4 = 24\n#### 24")],
    ("prompt-completion", 7): [user("2 knots for 3 hours?"), thought("2 * 3"), answer("6 miles.")],
    ("alpaca", 0): [user("Translate into Danish.\nThe boat leaks."), answer("Båden er utæt.")],
    ("alpaca", 1): [user("Name two seas."), thought("Any two will do."), answer("Baltic and North Sea.")],
    ("alpaca", 2): [user("First mast?"), answer("The main."), user("And the second?"), answer("The mizzen.")],
    ("sharegpt", 0): [
        user("What is catch?"),
        answer("The blade entering the water."),
        user("And release?"),
        thought("Opposite of catch."),
        answer("The blade leaving it."),
    ],
    ("sharegpt", 1): [
        user("Feather?"),
        answer("Turning the blade flat.", 0.0),
        user("Why?"),
        thought("Air resistance."),
        answer("Less wind."),
    ],
    ("sharegpt", 2): [user("Stern?"), answer("The back.")],
    ("sharegpt", 3): [user("Bow?"), answer("The front.")],
    ("sharegpt", 4): [
        user("Keel?"),
        answer("The spine of a ship."),
        user("Rib?"),
        answer("It crosses the keel."),
    ],
    ("llama-factory", 1): [  # one observation, a list, for two calls
        user("Ribe and Esbjerg?"),
        thought("Two harbours."),
        call("tide_times", '{"harbour": "Ribe"}'),
        tool_result("tide_times", "03:10"),
        call("tide_times", '{"harbour":"Esbjerg"}'),
        tool_result("tide_times", '{"high": "04:00"}'),
        answer("03:10 and 04:00."),
    ],
    ("llama-factory", 2): [  # text right before a call is a preamble
        user("Ribe again?"),
        preamble("I will look."),
        call("tide_times", '{"harbour": "Ribe"}'),
        tool_result("tide_times", "15:32"),
        answer("15:32."),
    ],
    ("llama-factory", 3): [  # two turns of calls in a row are parallel calls
        user("Ribe and Esbjerg?"),
        thought("Two harbours."),
        call("tide_times", '{"harbour": "Ribe"}'),
        tool_result("tide_times", "03:10"),
        call("tide_times", '{"harbour": "Esbjerg"}'),
        tool_result("tide_times", "04:00"),
        answer("03:10 and 04:00."),
    ],
    ("harmony", 3): [user("Port?"), answer("Left.", 0), user("Starboard?"), answer("Right.")],
    ("harmony", 4): [user("Name two ropes."), thought("Sheet, halyard."), answer("Sheet and ha", 0)],
    ("apigen-mt", 1): [
        user("Cancel B-9."),
        call("think", '{"thought": "Is it refundable?"}'),
        tool_result("think", ""),
        call("cancel", '{"id": "B-9"}'),
        tool_result("cancel", "Error: not found"),
        answer("There is no booking B-9."),
    ],
    ("hermes", 0): [
        user("A berth for 9.5 m, please."),
        call("berth", '{"length": 9.5, "note": "captain\'s"}'),
        tool_result("berth", '{"pier": "B", "free": true}'),
        answer("Pier B is free."),
    ],
    ("hermes", 1): [
        user("Berths for 6 and for 12 m?"),
        thought("Two <tool_call>s."),
        preamble("I will ask twice."),
        call("berth", '{"length": 6}'),
        tool_result("berth", "A4"),
        call("berth", '{"length": 12}'),
        tool_result("berth", "none left"),
        answer("A4 for the small one; nothing for 12 m."),
    ],
    ("hermes", 2): [user("Book a berth of 7 m."), call("berth", '{"length": 7}')],
    ("xlam", 0): [
        user("Wind at Anholt in knots, and at Hesselø"),
        call("wind", '{"place": "Anholt", "units": "knots"}'),
    ],
    ("xlam", 2): [user("Ring the bell"), thought("Nothing to fill in."), call("ring", "{}")],
    ("glaive", 0): [
        user("How many metres are 3 fathoms? It's urgent."),
        preamble("Let me see."),
        call("convert", '{"value": 3, "unit": "fathom\'s"}'),
        tool_result("convert", '{"metres": 5.4864}'),
        answer("About 5.5 metres."),
        user("Thanks!"),
        answer("You're welcome!"),
    ],
    ("glaive", 1): [user("List two winds:\n\n1. one\n2. two"), answer("1. Mistral\n\n2. Bora")],
    ("glaive", 2): [
        user("What time is it?"),
        call("now", "{}"),
        tool_result("now", "12:05"),
        answer("Five past twelve."),
    ],
    ("openthoughts", 0): [
        user("How many knots are 10 m/s?"),
        thought("One knot is 0.5144 m/s.\n\n10 / 0.5144 = 19.44"),
        answer("About $\\boxed{19.4}$ knots."),
    ],
    ("openthoughts", 1): [user("2 + 2?"), thought("Four."), answer("4")],
    ("openthoughts", 2): [user("Is 97 prime?"), thought("Not by 2, 3, 5, 7. So")],
    ("openr1", 0): [user("Find $3 \\cdot 17$."), thought("3 * 17 = 51"), answer("\\boxed{51}")],
    ("openr1", 1): [user("How many divisors has 12?"), thought("1, 2, 3, 4, 6, 12"), answer("6")],
    ("openai-preference", 0): [
        user("Is my knot good?"),
        thought("Say what is missing."),
        answer("Nearly: tuck the end once more."),
    ],
    ("openai-preference", 1): [user("Tide at Ribe?"), call("tide_times", '{"harbour": "Ribe"}')],
    ("openai-preference", 2): [user("Hi"), answer("Ahoy!")],
    ("trl-preference", 0): [user("Which way is north?"), thought("Needle."), answer("Where the needle points.")],
    ("trl-preference", 1): [user("Anchor or mooring?"), thought("Strong wind."), answer("Mooring.")],
    ("trl-preference", 2): [user("Rope or chain?"), answer("Chain, it lies flat.")],
    ("trl-preference", 3): [user("One?"), answer("Two.", 0), user("Three?"), answer("Four.")],
    ("trl-preference", 4): [user("Reef now?"), answer("Yes.\n\nIt blows.")],
}


@pytest.mark.parametrize(("name", "number"), MESSAGES)
def test_the_messages_of_a_sample_row(name: str, number: int) -> None:
    assert list(read(rows_of(name)[number])[0].messages) == MESSAGES[name, number]


PROBLEMS: dict[tuple[str, int], list[tuple[str, str, str]]] = {
    ("openai-responses", 1): [
        ("warning", "responses-item", "output[6]"),
        ("warning", "responses-item", "tools[0]"),
    ],
    ("openai-responses", 3): [("warning", "responses-item", "input[1]")],
    ("harmony", 2): [("warning", "harmony-repaired", "harmony")],
    ("harmony", 4): [("warning", "harmony-repaired", "text")],
    ("xlam", 0): [("warning", "several-calls", "answers")],
    ("xlam", 1): [("warning", "tool-type", "tools[0].parameters.chart.type")],
    ("openthoughts", 2): [("warning", "unclosed-think", "conversations[1].value")],
    ("openr1", 2): [("error", "no-correct-trace", "generations")],
}


@pytest.mark.parametrize(("name", "number"), SAMPLES)
def test_the_problems_of_a_sample_row(name: str, number: int) -> None:
    assert codes(read(rows_of(name)[number])[1]) == PROBLEMS.get((name, number), [])


INSTRUCTIONS = {
    ("openai", 0): "You are the harbour master's assistant. Answer in one sentence.",
    ("openai", 6): "Answer in one sentence.",
    ("openai-responses", 0): "Answer with one word.",
    ("openai-responses", 4): "Think first.",
    ("prompt-completion", 5): "Answer with a word.",
    ("openai-responses", 2): "No medical advice.",
    ("multilingual-thinking", 1): "reasoning language: German\n\nYou are a pilot.",
    ("prompt-completion", 1): "Rhyme.",
    ("alpaca", 2): "You are a sailor.",
    ("sharegpt", 0): "You coach rowers.",
    ("sharegpt", 1): "Two words at most.",
    ("llama-factory", 1): "Be brief.",
    ("apigen-mt", 0): "# Ferry policy\n- Never name a price.",
    ("apigen-mt", 1): None,
    ("hermes", 0): None,
    ("hermes", 1): "You are Kai of Marina Nord.\n\nSpeak plainly.",
    ("glaive", 0): None,
    ("glaive", 1): "You are a helpful assistant, with no access to external functions.",
    ("openthoughts", 0): None,
    ("openthoughts", 1): "Answer briefly.",
    ("openai-preference", 0): "You are kind.",
}


@pytest.mark.parametrize(("name", "number"), INSTRUCTIONS)
def test_the_instructions_of_a_sample_row(name: str, number: int) -> None:
    assert read(rows_of(name)[number])[0].instructions == INSTRUCTIONS[name, number]


REJECTED = {
    ("openai-preference", 0): [answer("No.")],
    ("openai-preference", 1): [answer("I cannot know that.")],
    ("openai-preference", 2): [answer("What?")],
    ("trl-preference", 0): [thought("Needle."), answer("Up.")],  # an equal thought does not become part of the prompt
    ("trl-preference", 1): [answer("Anchor.")],
    ("trl-preference", 2): [answer("Rope.")],
    ("trl-preference", 3): [answer("No.")],
    ("trl-preference", 4): [answer("Later.")],
}


@pytest.mark.parametrize(("name", "number"), SAMPLES)
def test_the_worse_alternative_of_a_sample_row(name: str, number: int) -> None:
    assert list(read(rows_of(name)[number])[0].rejected) == REJECTED.get((name, number), [])


def test_tools_of_the_samples() -> None:
    harbour = {"type": "object", "properties": {"harbour": {"type": "string"}}}
    tides = (ToolDescription("tide_times", "High water.", harbour),)
    assert read(rows_of("llama-factory")[0])[0].tools == tides
    (flat,) = read(rows_of("openai-responses")[1])[0].tools  # beside a tool that is not a function
    assert flat == ToolDescription("tide_times", "Times of high water.", {**harbour, "required": ["harbour"]})
    berth = {"type": "object", "properties": {"length": {"type": "number"}}, "required": ["length"]}
    for row in rows_of("hermes"):  # the second row has its tools in the system text only
        assert read(row)[0].tools == (ToolDescription("berth", "A free berth.", berth),)
    convert, now = read(rows_of("glaive")[0])[0].tools
    assert convert.name == "convert" and convert.parameters is not None
    assert convert.parameters["required"] == ["value"]
    assert now == ToolDescription("now", "The time", None)
    assert [tool.name for tool in read(rows_of("openai-preference")[1])[0].tools] == ["tide_times"]


def test_python_types_of_xlam_become_a_schema() -> None:
    (wind,) = read(rows_of("xlam")[0])[0].tools
    assert wind.parameters == {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "Where."},
            "units": {"type": "string", "description": "m/s or knots.", "default": "m/s"},
            "hours": {"type": "array", "items": {"type": "integer"}, "description": "Hours."},
            "box": {
                "type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2, "description": "Corner.",
            },
        },
        "required": ["place"],
    }  # fmt: skip
    (course,) = read(rows_of("xlam")[1])[0].tools
    assert course.parameters is not None
    types = {key: {**value, "description": ""} for key, value in course.parameters["properties"].items()}
    assert types == {
        "points": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}, "description": ""},
        "limits": {"type": "object", "additionalProperties": {"type": "number"}, "description": ""},
        "mode": {"type": ["string", "integer"], "description": ""},
        "tags": {"type": "array", "uniqueItems": True, "items": {"type": "string"}, "description": ""},
        "chart": {"description": ""},
    }
    assert course.parameters["required"] == ["points", "limits", "tags", "chart"]
    assert read(rows_of("xlam")[2])[0].tools == (ToolDescription("ring", "Ring the bell.", None),)


def test_what_the_rows_say_of_effort_identity_date_and_response_format() -> None:
    system = read(rows_of("openai")[4], date="2020-01-01")[0].system
    assert system is not None and (system.effort, system.identity) == ("high", "You are Molo.")
    assert system.date == "2025-06-01"
    asked = read(rows_of("openai-responses")[0])[0].system
    assert asked is not None and asked.effort == "low" and asked.date is None
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    assert read(rows_of("openai-responses")[3])[0].response_formats == (ResponseFormat("number", schema),)
    row = {**rows_of("openai")[0], "chat_template_kwargs": {"builtin_tools": ["python"]}}
    namespaces = getattr(read(row)[0].system, "namespaces", ())
    assert [namespace.name for namespace in namespaces] == ["python"]


def test_other_keys_stay_with_the_row() -> None:
    assert read(rows_of("openr1")[0])[0].extra == {"solution": "$51$", "answer": "51", "uuid": "u-1"}
    assert read(rows_of("hermes")[0])[0].extra == {"id": "h1", "category": "Harbour"}
    assert read(rows_of("trl-preference")[2])[0].extra == {"score_chosen": 8.5}
    assert read(rows_of("openai-preference")[0])[0].extra == {}
    assert read({**rows_of("alpaca")[0], "label": None, "n": 0})[0].extra == {"n": 0}
    assert read(rows_of("multilingual-thinking")[2])[0].extra["answer"] == "12"


def test_raw_harmony_is_taken_literally() -> None:
    first, second, third = (read(row)[0] for row in rows_of("harmony")[:3])
    assert {message.place for message in first.messages} == {"text"}
    assert first.system is None and first.instructions is None and first.tools == ()
    assert [message.role for message in first.messages] == ["system", "developer", "user", "assistant", "assistant"]
    assert first.messages[0].content.startswith("You are ChatGPT") and "Valid channels" in first.messages[0].content
    assert list(first.messages[1:]) == [
        Message("developer", "# Instructions\n\nBe brief."), user("3 * 4?"), thought("Twelve."), answer("12"),
    ]  # fmt: skip
    assert list(second.messages) == [  # prompt and completion are one text
        user("Ebb or flow at 6?"), call("tide_times", '{"hour": 6}'), tool_result("tide_times", "ebb"), answer("Ebb."),
    ]  # fmt: skip
    assert third.messages[-1].content == "Hello to you." and third.extra == {"note": "the answer names no channel"}


@pytest.mark.parametrize("number", [0, 1])
def test_raw_harmony_is_rendered_as_it_was(number: int, tokenizer_folder: Path) -> None:
    vocabulary, row = Vocabulary.load(tokenizer_folder), rows_of("harmony")[number]
    conversation = read(row)[0]
    assert prologue(conversation) == ()
    ids = render_messages(conversation.messages, vocabulary, stop=True).ids
    assert vocabulary.decode(ids) == (row.get("text") or row["prompt"] + row["completion"])


def test_responses_calls_without_outputs_and_text_before_more() -> None:
    def f(id: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"}

    found, problems = read({"input": "u", "output": [f("1"), f("2"), {"type": "reasoning", "summary": []}]})
    assert list(found.messages) == [user("u"), call("f", "{}")]
    assert [code for _, code, _ in codes(problems)] == ["responses-item", "call-without-result"]
    late = [f("1"), {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]}, f("2")]
    outputs = [{"type": "function_call_output", "call_id": id, "output": f"r{id}"} for id in "12"]
    found, problems = read({"items": [*late, *outputs]})
    expected = [call("f", "{}"), tool_result("f", "r1"), thought("t"), call("f", "{}"), tool_result("f", "r2")]
    assert list(found.messages) == expected and problems == []
    said = [{"role": "assistant", "content": text} for text in "ab"]
    assert list(read({"items": said})[0].messages) == [preamble("a"), answer("b")]
    said[0]["phase"] = "final_answer"
    assert list(read({"items": said})[0].messages) == [answer("a"), answer("b")]


def test_responses_outputs_of_a_repeated_call_id_keep_their_order() -> None:
    calls = [{"type": "function_call", "call_id": "1", "name": name, "arguments": "{}"} for name in "fg"]
    outputs = [{"type": "function_call_output", "call_id": "1", "output": text} for text in "rs"]
    found = read({"items": [*calls, *outputs]})[0].messages
    assert list(found) == [call("f", "{}"), tool_result("f", "r"), call("g", "{}"), tool_result("g", "s")]


def test_hermes_results_with_more_than_a_wrapper_stay_whole() -> None:
    row = rows_of("hermes")[0]
    row["conversations"][3]["value"] = text = '{"name": "berth", "content": "B", "until": 9}'
    assert read(row)[0].messages[2] == tool_result("berth", text)


def test_glaive_speakers_begin_after_an_empty_line() -> None:
    row = {"system": "SYSTEM: ", "chat": "USER: Read this:\nUSER: x\nASSISTANT: y\n\n\nASSISTANT: Done."}
    assert list(read(row)[0].messages) == [user("Read this:\nUSER: x\nASSISTANT: y"), answer("Done.")]


def test_trl_alternatives_of_several_turns_after_a_prompt() -> None:
    def turns(last: str) -> list[dict[str, str]]:
        said = [("assistant", "a"), ("user", "v"), ("assistant", last)]
        return [{"role": role, "content": text} for role, text in said]

    found, problems = read({"prompt": "u", "chosen": turns("b"), "rejected": turns("c")})
    assert list(found.messages) == [user("u"), answer("a"), user("v"), answer("b")] and problems == []
    assert list(found.rejected) == [answer("a"), user("v"), answer("c")] and found.prompt == 1


def test_two_observations_for_two_calls_are_two_results_even_if_one_is_a_list() -> None:
    row = rows_of("llama-factory")[1]
    row["conversations"][2:3] = [{"from": "observation", "value": "[1, 2]"}, {"from": "observation", "value": "x"}]
    results = [message.content for message in read(row)[0].messages if message.role == "tool"]
    assert results == ["[1, 2]", "x"]


def test_openr1_keeps_the_other_complete_traces_with_the_verifiers_that_accept_them() -> None:
    found, problems = read(rows_of("openr1")[0])
    (other,) = found.others
    assert list(other.messages) == [thought("3 * 17 = 41"), answer("\\boxed{41}")] and problems == []
    assert (found.score, other.score, found.prompt) == (1.0, 0.0, 1)
    found, _ = read(rows_of("openr1")[1])  # its first trace is not complete
    assert [(list(other.messages), other.score) for other in found.others] == [([thought("six"), answer("six")], 1.0)]
    assert found.score == 2.0
    alone = {"problem": "p", "generations": ["<think>t</think>a"], "correctness_llama": [True]}
    assert (read(alone)[0].others, read(alone)[0].score) == ((), None)


def test_openr1_prefers_the_trace_that_both_verifiers_accept() -> None:
    row = rows_of("openr1")[1]
    row["finish_reasons"] = None
    traces = {"first": [True, True, False], "third": [False, False, True]}
    row["generations"] = ["<think>0</think>first", "1", "<think>2</think>third"]
    for expected, verdicts in traces.items():
        row["correctness_math_verify"], row["correctness_llama"] = verdicts, None
        assert read(row)[0].messages[-1] == answer(expected)
    row["correctness_math_verify"], row["correctness_llama"] = [True, True, True], [False, True, True]
    assert read(row)[0].messages[-1] == answer("third")
    row["finish_reasons"] = ["stop", "stop", "length"]
    assert read(row)[0].messages[-1] == answer("first")
    row["correctness_math_verify"], row["correctness_llama"] = [True, False, True], None
    row["finish_reasons"] = None
    assert read(row)[0].messages[-1] == answer("first")
    row["correctness_math_verify"], row["correctness_llama"] = None, None
    assert codes(read(row)[1]) == [("error", "no-correct-trace", "generations")]


def test_columns_by_another_name() -> None:
    columns = {"question": "prompt", "reply": "completion", "cot": "thinking"}
    row = {"question": "u", "reply": "a", "cot": "t", "prompt": "not this", "id": 1}
    assert detect(row, DataSection(columns=columns)) == "prompt-completion"
    found, problems = read(row, columns=columns)
    assert list(found.messages) == [user("u"), thought("t"), answer("a")]
    assert found.extra == {"id": 1} and problems == []
    swapped = read({"prompt": "a", "completion": "u"}, columns={"prompt": "completion", "completion": "prompt"})[0]
    assert list(swapped.messages) == [user("u"), answer("a")]


def test_a_column_that_is_missing_is_named_with_the_keys() -> None:
    found, problems = read({"query": "u", "reply": "a"}, columns={"question": "prompt", "reply": "completion"})
    assert codes(problems) == [("error", "column", "")] and found.messages == ()
    with pytest.raises(UserError, match="no column 'question'"):
        detect({"query": "u", "reply": "a"}, DataSection(columns={"question": "prompt"}))
    assert "'question'" in problems[0].what and "query, reply" in problems[0].what


def test_faults_are_placed_under_the_rows_own_column_names() -> None:
    row = {"chat": [{"role": "user", "content": "u"}, {"role": "robot", "content": "a"}]}
    assert codes(read(row, columns={"chat": "messages"})[1]) == [("error", "unknown-role", "chat[1].role")]
