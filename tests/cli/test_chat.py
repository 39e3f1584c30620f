"""Tests of `ossia chat` and `ossia eval` through the command line. The model is a scripted engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ossia.__main__ import main
from ossia.generate.engine import Request, Sampling
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from support.generate_fakes import Arms, Scripted, said

HELDOUT = str(Path(__file__).parents[2] / "examples" / "multilingual" / "heldout.jsonl")


@pytest.fixture(scope="module")
def vocabulary(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


class World:
    """A run whose model is scripted. `base` and `tuned` are the engines that the commands get."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.base = Scripted(lambda _: said(vocabulary, "I am the base.", "base thought"))
        self.tuned = Scripted(lambda _: said(vocabulary, "I am tuned.", "tuned thought"))

    def engine(self) -> Arms:
        return Arms(self.base, self.tuned)

    def prompts(self, vocabulary: Vocabulary) -> list[str]:
        return [vocabulary.decode(prompt) for prompt in self.tuned.prompts]


@pytest.fixture
def world(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    from ossia import runs
    from ossia.config import Recipe
    from ossia.generate.subject import Subject

    made = World(vocabulary)
    monkeypatch.setenv("OSSIA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(Subject, "vocabulary", lambda self: vocabulary)
    monkeypatch.setattr(Subject, "check", lambda self, **_: [])  # there are no files to be trusted
    monkeypatch.setattr(Subject, "engine", lambda self, batch_size=16: made.engine())
    run = runs.create(Recipe.model_validate({"name": "toy", "data": {"effort": "high"}}), "test")
    run.checkpoint(5).mkdir(parents=True)
    (run.checkpoint(5) / "adapter_config.json").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return made


Ossia = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ossia(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ossia:
    """A function that runs the command line and returns the exit code, stdout and stderr."""

    def call(*arguments: str, typed: Sequence[str | type[BaseException]] | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ossia", *arguments])
        monkeypatch.setattr(sys.stdin, "isatty", lambda: typed is not None, raising=False)
        lines: Iterator[str | type[BaseException]] = iter(typed or ())

        def read(_prompt: str = "") -> str:
            line = next(lines, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return call


def test_a_single_question_puts_the_answer_on_stdout_and_the_thought_on_stderr(world: World, ossia: Ossia) -> None:
    code, out, err = ossia("chat", "last", "--question", "Who are you?")
    assert (code, out) == (0, "I am tuned.\n")
    assert "tuned thought" in err
    code, out, err = ossia("chat", "last", "-q", "Who are you?", "--hide-thoughts")
    assert (code, out) == (0, "I am tuned.\n")
    assert "thought" not in err


def test_options_reach_the_prompt_and_the_engine(world: World, ossia: Ossia, vocabulary: Vocabulary) -> None:
    ossia("chat", "last", "-q", "Hi")
    options = [
        "--effort",
        "low",
        "--system",
        "Be brief.",
        "--temperature",
        "0.5",
        "--seed",
        "9",
        "--max-new-tokens",
        "77",
    ]
    ossia("chat", "last", "-q", "Hi", *options)
    first, second = world.prompts(vocabulary)
    assert "Reasoning: high" in first, "as the run's recipe says"
    assert "developer" not in first
    assert "Reasoning: low" in second
    assert "# Instructions\n\nBe brief." in second
    plain, request = world.tuned.requests
    assert (request.sampling.temperature, request.seed, request.max_new_tokens) == (0.5, 9, 77)
    assert (plain.sampling.temperature, plain.max_new_tokens) == (1.0, 4096)
    assert plain.seed != 0


def test_how_to_sample_comes_from_the_recipe_or_from_set(world: World, ossia: Ossia) -> None:
    settings = ["chat.top_k=40", "chat.min_p=0.05", "chat.seed=3", "chat.temperature=0.7"]
    ossia("chat", "last", "-q", "Hi", "--top-p", "0.8", *(part for one in settings for part in ("--set", one)))
    (request,) = world.tuned.requests
    assert request.sampling == Sampling(temperature=0.7, top_k=40, top_p=0.8, min_p=0.05)
    assert request.seed == 3


def test_the_base_answers_too_when_asked(world: World, ossia: Ossia) -> None:
    code, out, _ = ossia("chat", "last", "-q", "Who?", "--vs", "base")
    assert code == 0
    assert out.split("\n") == ["base", "I am the base.", "tuned", "I am tuned.", ""]


def test_what_cannot_be_is_said_before_anything_is_loaded(world: World, ossia: Ossia, tmp_path: Path) -> None:
    code, out, err = ossia("chat", "last")
    assert (code, out) == (2, "")
    assert "needs a terminal" in err
    assert "--question" in err
    code, _, err = ossia("chat", str(tmp_path / "model"), "-q", "Hi", "--vs", "base")
    assert code == 2
    assert "no adapter to compare with its base" in err
    code, _, err = ossia("chat", "nosuch", "-q", "Hi")
    assert code == 2
    assert "no run and no model 'nosuch'" in err
    assert not world.tuned.prompts


def test_a_conversation_with_commands(world: World, ossia: Ossia, vocabulary: Vocabulary) -> None:
    typed = ["First?", "", "/effort low", "/system Be kind.", "Second?", "/new", "Third?", "/quit", "Never asked"]
    code, out, err = ossia("chat", "last", typed=typed)
    assert code == 0
    assert out.count("I am tuned.") == 3
    first, second, third = world.prompts(vocabulary)
    assert "Reasoning: high" in first
    assert "First?" in second
    assert "I am tuned." in second
    assert "tuned thought" not in second
    assert "Reasoning: low" in second
    assert "Be kind." in second
    assert "Second?" not in third
    assert "Be kind." in third
    assert "next: ossia export last" in err


def test_unknown_commands_are_not_said_to_the_model(world: World, ossia: Ossia) -> None:
    code, _, err = ossia("chat", "last", typed=["/effrot low", "/effort huge", "/help", KeyboardInterrupt, EOFError])
    assert code == 0
    assert "did you mean /effort?" in err
    assert "/effort low, /effort medium or /effort high" in err
    assert "start a new conversation" in err
    assert "/quit ends the chat" in err
    assert not world.tuned.prompts


def test_ctrl_c_stops_the_answer_and_not_the_program(world: World, ossia: Ossia, vocabulary: Vocabulary) -> None:
    whole, asked = said(vocabulary, "One two three"), []

    def ids(request: Request) -> Iterator[int]:
        asked.append(vocabulary.decode(request.prompt))
        if len(asked) == 1:
            yield from whole[:5]
            raise KeyboardInterrupt
        yield from whole

    world.tuned.ids = ids  # type: ignore[method-assign]
    code, out, err = ossia("chat", "last", typed=["Count.", "Again."])
    assert code == 0
    assert out.split() == ["One", "two", "One", "two", "three"]
    assert "stopped; the answer so far is kept" in err
    assert "<|channel|>final<|message|>One two<|end|>" in asked[1]
    asked.clear()
    assert ossia("chat", "last", "-q", "Count.")[0] == 130


def test_a_model_cannot_send_control_sequences_or_markup_to_the_terminal(
    world: World, ossia: Ossia, vocabulary: Vocabulary
) -> None:
    nasty = "a\x1b[2Jb\x9b31mc [red]d[/red] :smile:\n\te"
    world.tuned.script = lambda _: said(vocabulary, nasty)
    _, out, _ = ossia("chat", "last", "-q", "Hi")
    assert out == "a[2Jb31mc [red]d[/red] :smile:\n\te\n"


def test_malformed_and_cut_answers_are_remarked(world: World, ossia: Ossia, vocabulary: Vocabulary) -> None:
    world.tuned.script = lambda _: vocabulary.encode("Hello there, this has no header at all")
    _, out, err = ossia("chat", "last", "-q", "Hi", "--max-new-tokens", "3")
    assert out == "Hello there,\n"
    assert "cut off after 3 tokens" in err
    assert "malformed" in err


def test_eval_prints_a_table_or_one_json_object(world: World, ossia: Ossia, tmp_path: Path) -> None:
    code, out, err = ossia("eval", "last", "--data", HELDOUT, "--limit", "6")
    assert code == 0
    assert out.splitlines()[0].split() == ["measure", "n", "base", "tuned", "change"]
    assert "0 0% (0-39)" in out
    assert "6 100% (61-100)" in out
    assert "written to" in err
    code, out, _ = ossia("eval", "last", "--data", HELDOUT, "--limit", "6", "--vs", "none", "--json")
    value = json.loads(out)
    assert (code, value["complete"], value["arms"], value["questions"]) == (0, True, ["tuned"], 6)
    assert json.loads(Path(value["path"]).read_text(encoding="utf-8"))["asked"] == 6
    assert len(list((tmp_path / "runs").glob("*_toy_*/evals/*.json"))) == 2
    code, out, _ = ossia("eval", str(tmp_path / "model"), "--data", HELDOUT, "--limit", "4", "--json")
    assert (code, json.loads(out)["arms"]) == (0, ["model"])


def test_eval_interrupted_says_where_the_rest_is(world: World, ossia: Ossia) -> None:
    def ids(request: Request) -> Iterator[int]:
        raise KeyboardInterrupt
        yield 0

    world.tuned.ids = ids  # type: ignore[method-assign]
    code, _, err = ossia("eval", "last", "--data", HELDOUT, "--limit", "6")
    assert code == 130
    assert "interrupted after 0 of 6 questions" in err
    assert "written to" in err


def test_eval_without_data_says_what_to_do(world: World, ossia: Ossia, tmp_path: Path) -> None:
    code, _, err = ossia("eval", "last")
    assert code == 2
    assert "--data FILE" in err
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"nothing": 1}\n', encoding="utf-8")
    code, _, err = ossia("eval", "last", "--data", str(bad))
    assert code == 2
    assert "1 rows cannot be used" in err
    assert "nothing to ask" in err
