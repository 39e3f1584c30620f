"""Tests of `ossia harmony render` and `ossia harmony parse`: files, pipes and faults in their contents."""

from __future__ import annotations

import json
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from ossia.__main__ import main
from ossia.harmony import conversation_from_chat, parse, render_conversation, render_prompt
from ossia.harmony.conversation import SystemSettings
from ossia.harmony.tokenizer.vocabulary import Vocabulary

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
MESSAGES = [
    {"role": "system", "content": "Be terse."},
    {"role": "user", "content": "Hi\n<|end|>"},
    {"role": "assistant", "thinking": "Hm.", "content": "Hello."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "thinking": "A call.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "größer"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


class Shell:
    """Runs the program in this process, in `folder`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder
        monkeypatch.chdir(folder)

    def __call__(self, *arguments: str, stdin: str | bytes = "") -> tuple[int, str, str]:
        """Return (exit code, stdout, stderr)."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self.monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(data), encoding="utf-8"))
        self.monkeypatch.setattr(sys, "argv", ["ossia", "harmony", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = self.capsys.readouterr()
        return int(end.value.code or 0), out, err

    def write(self, value: Any, name: str = "chat.json") -> str:
        (self.folder / name).write_text(json.dumps(value), encoding="utf-8")
        return name


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    return Shell(monkeypatch, capsys, tmp_path)


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# render


def test_render_gives_what_the_model_is_given(shell: Shell, vocabulary: Vocabulary) -> None:
    conversation = conversation_from_chat(MESSAGES, TOOLS)
    file = shell.write({"messages": MESSAGES, "tools": TOOLS})
    code, out, err = shell("render", file)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == {"ids": render_prompt(conversation, vocabulary)}
    assert shell("render", "-", stdin=(shell.folder / file).read_bytes())[1] == out
    whole = json.loads(shell("render", file, "--whole")[1])["ids"]
    assert whole == render_conversation(conversation, vocabulary)
    assert len(whole) > len(json.loads(out)["ids"])  # it contains the thought of the finished turn
    other = json.loads(shell("render", file, "--order", "recipient-first")[1])["ids"]
    assert other == render_prompt(conversation, vocabulary, "recipient-first") != json.loads(out)["ids"]
    text = shell("render", file, "--text")[1]
    assert text == vocabulary.decode(json.loads(out)["ids"]) + "\n"
    assert text.endswith("<|start|>assistant\n")


def test_render_takes_lists_requests_and_settings(shell: Shell, vocabulary: Vocabulary) -> None:
    said = [{"role": "user", "content": "Hi"}]
    plain = json.loads(shell("render", shell.write(said))[1])
    assert json.loads(shell("render", shell.write({"messages": said}))[1]) == plain
    for key, value in (("reasoning_effort", "high"), ("reasoning", {"effort": "high"}), ("reasoning", "high")):
        text = shell("render", shell.write({"messages": said, key: value}), "--text")[1]
        assert "Reasoning: high" in text
    request = {"messages": said, "system": {"date": "2026-01-31", "channels": ["final"]}, "instructions": "Be brief."}
    text = shell("render", shell.write(request), "--text")[1]
    assert "Current date: 2026-01-31" in text
    assert "# Valid channels: final." in text
    assert "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>" in text
    assert shell("render", shell.write({"messages": said, "system": None}), "--text")[1].startswith("<|start|>user")
    assert "## python" in shell("render", shell.write({"messages": said, "builtin_tools": ["python"]}), "--text")[1]
    code, out, err = shell("render", shell.write({"messages": said, "model": "m", "temperature": 1}))
    assert (code, json.loads(out)) == (0, plain)
    assert err == "not rendered: model, temperature\n"


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("text", "chat.json"),
        ({"message": []}, "chat.json"),
        ([{"role": "usr", "content": ""}], "chat.json messages[0].role"),
        ({"messages": [], "instructions": 3}, "chat.json instructions.content"),
        ({"messages": [], "reasoning_effort": "max"}, "chat.json reasoning_effort"),
        ({"messages": [], "reasoning": {"effort": 3}}, "chat.json reasoning"),
        ({"messages": [], "system": "terse"}, "chat.json system"),
        ({"messages": [], "system": {"dat": "x"}}, "chat.json system.dat"),
        ({"messages": [], "system": {"date": 3}}, "chat.json system.date"),
        ({"messages": [], "system": {"effort": "max"}}, "chat.json system.effort"),
        ({"messages": [], "builtin_tools": "python"}, "chat.json builtin_tools"),
        ({"messages": [], "tools": [{}]}, "chat.json tools[0]"),
    ],
    ids=str,
)
def test_what_cannot_be_rendered_is_named(shell: Shell, value: Any, where: str) -> None:
    code, out, err = shell("render", shell.write(value))
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {where}: ")
    assert "Traceback" not in err


def test_files_that_are_not_there_or_no_json(shell: Shell) -> None:
    assert shell("render", "missing.json")[::2] == (
        2,
        "error: missing.json: the file cannot be read: No such file or directory\n",
    )
    (shell.folder / "bad.json").write_bytes(b"{\xff")
    code, _, err = shell("render", "bad.json")
    assert code == 2
    assert err.startswith("error: bad.json: this is not JSON: ")
    assert shell("parse", "missing.jsonl")[0] == 2


# parse


def test_parse_gives_a_line_for_each_message(shell: Shell, vocabulary: Vocabulary) -> None:
    texts = [
        "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>final<|message|>größer<|return|>",
        "I'm sorry.<|return|>",
        "",
    ]
    streams = [vocabulary.encode_with_specials(text) for text in texts]
    code, out, err = shell("parse", stdin="\n\n".join(map(json.dumps, streams)))
    assert (code, err) == (0, "")
    found = rows(out)
    assert [(row["stream"], row["channel"], row["content"]) for row in found] == [
        (0, "analysis", "t"),
        (0, "final", "größer"),
        (1, "commentary", "I'm sorry."),
    ]
    assert "größer" in out
    assert found[1] == {
        "stream": 0, "role": "assistant", "channel": "final", "recipient": None, "content_type": None,
        "content": "größer", "name": None, "header": "assistant<|channel|>final", "complete": True, "stop": 200002,
        "repairs": [], "moved": 0, "span": [5, 13], "header_span": [6, 9], "content_span": [10, 12],
    }  # fmt: skip
    assert found[2]["repairs"]
    (shell.folder / "ids.jsonl").write_text("\n".join(json.dumps({"ids": ids}) for ids in streams))
    assert shell("parse", "ids.jsonl")[1] == out


def test_parse_reads_texts(shell: Shell) -> None:
    line = "<|channel|>final<|message|>two\nlines<|return|>"
    code, out, _ = shell("parse", "--text", stdin=json.dumps(line) + "\nno header\r\n")
    assert code == 0
    assert [(row["stream"], row["channel"], row["content"]) for row in rows(out)] == [
        (0, "final", "two\nlines"),
        (1, "commentary", "no header"),
    ]
    code, out, err = shell("parse", "--text", "--start", "message", stdin='"open\n<|start|>user<|message|>u')
    assert code == 2
    assert [row["content"] for row in rows(out)] == ["u"]
    assert err.startswith("error: stdin:1: this is not a JSON string")


@pytest.mark.parametrize("line", ["[1, 2", "3", "{}", '{"ids": "1"}', "[1.5]", "[true]", '["1"]', "[[1]]", "\ufffd"])
def test_a_bad_line_is_named_and_the_others_are_read(shell: Shell, line: str) -> None:
    good = "[200005, 17196, 200008, 13225, 200002]"
    code, out, err = shell("parse", stdin=f"{good}\n{line}\n{good}\n")
    assert code == 2
    assert [(row["stream"], row["content"]) for row in rows(out)] == [(0, "Hello"), (2, "Hello")]
    assert err.startswith("error: stdin:2: ")
    assert err.count("error") == 1


def test_parse_survives_any_bytes_and_any_ids(shell: Shell) -> None:
    code, out, _ = shell("parse", stdin=b"\xff\xfe\n[-1, 99999999999999999999999, 200500, 9552, 240]\n")
    assert code == 2
    (row,) = rows(out)
    assert row["content"] == "\ufffd\ufffd<|reserved_200500|> \ufffd"
    assert shell("parse", "--text", stdin=b"\xff\xfe\n")[0] == 0
    assert shell("parse", stdin="")[:2] == (0, "")


def test_both_directions(shell: Shell, vocabulary: Vocabulary) -> None:
    file = shell.write({"messages": MESSAGES, "tools": TOOLS})
    rendered = shell("render", file, "--whole")[1]
    found = rows(shell("parse", "--start", "message", stdin=rendered)[1])
    said = conversation_from_chat(MESSAGES, TOOLS).messages
    assert [row["content"] for row in found[2:]] == [message.content for message in said]
    assert not any(row["repairs"] for row in found)
    # The prompt ends with a role and nothing after it.
    prompt = shell("render", file)[1]
    *_, last = rows(shell("parse", "--start", "message", stdin=prompt)[1])
    assert (last["role"], last["channel"], last["content"], last["complete"]) == ("assistant", None, "", False)
    ids = json.loads(rendered)["ids"]
    assert [row["content"] for row in found] == [m.content for m in parse(ids, vocabulary, "message")]


def test_another_tokenizer_is_asked_for_by_model(shell: Shell, tokenizer_folder: Path) -> None:
    file = shell.write([{"role": "user", "content": "Hi"}])
    (shell.folder / "model").mkdir()
    (shell.folder / "model" / "config.json").write_text("{}")
    (shell.folder / "model" / "tokenizer.json").symlink_to(tokenizer_folder / "tokenizer.json")
    same = shell("render", file, "--model", "model")
    assert same[1] == shell("render", file)[1]
    assert shell("render", file, "--model", "no such model")[0] == 2


def test_the_default_system_message_is_that_of_training(shell: Shell, vocabulary: Vocabulary) -> None:
    said = [{"role": "user", "content": "Hi"}]
    conversation = conversation_from_chat(said, system=SystemSettings())
    assert json.loads(shell("render", shell.write(said))[1])["ids"] == render_prompt(conversation, vocabulary)
