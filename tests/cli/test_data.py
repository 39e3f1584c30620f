"""Tests of `ossia data` as a person and as a program use it: in new processes, with results on stdout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from ossia.config import DataSection, Format
from ossia.data import compile_sources
from ossia.harmony.tokenizer.vocabulary import Vocabulary

U, A = {"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2", "thinking": "easy <b>"}
ROWS: list[Any] = [
    {"messages": [{"role": "system", "content": "Be brief."}, U, A, {"role": "user", "content": "And 2+2?"}, A]},
    {"messages": [U, {"role": "asistant", "content": "x"}]},
    {"prompt": "Say hi", "completion": "<think>greet</think>Hi 👋"},
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return tmp_path


def ossia(place: Path, *arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "ossia", *arguments],
        cwd=place, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1", **env}, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def test_show_prints_one_json_object_per_training_example(place: Path, tokenizer_folder: Path) -> None:
    lines = [json.loads(line) for line in ossia(place, "data", "show", "d.jsonl", "--json").stdout.splitlines()]
    expected = compile_sources(place / "d.jsonl", Vocabulary.load(tokenizer_folder), DataSection()).examples
    assert [(x["file"], x["row"], x["turn"], x["format"]) for x in lines] == [
        ("d.jsonl", 1, 1, "openai"),
        ("d.jsonl", 1, 2, "openai"),
        ("d.jsonl", 3, 1, "prompt-completion"),
    ]
    for line, example in zip(lines, expected, strict=True):
        assert (line["input_ids"], line["channel"]) == (example.ids, example.channels)
        assert line["trained"] == [int(weight > 0) for weight in example.weights] and "weight" not in line
    weighted = ossia(place, "data", "show", "d.jsonl", "--json", "--set", "data.channel_weights={analysis: 0.5}")
    first = json.loads(weighted.stdout.splitlines()[0])
    assert set(first["weight"]) == {0.0, 0.5, 1.0} and first["trained"] == lines[0]["trained"]


def test_show_draws_the_row_that_is_asked_for(place: Path) -> None:
    shown = ossia(place, "data", "show", "d.jsonl", "--row", "3").stdout
    assert shown.startswith("d.jsonl:3 turn 1:") and "«<|channel|>analysis<|message|>greet<|end|>" in shown
    assert ossia(place, "data", "show", "d.jsonl").stdout.count("d.jsonl:1 turn") == 2
    refused = ossia(place, "data", "show", "d.jsonl", "--row", "2", code=2).stderr
    assert "row 2 cannot be used" in refused and "unknown role 'asistant'" in refused
    assert "there is no row 9" in ossia(place, "data", "show", "d.jsonl", "--row", "9", code=2).stderr
    assert "exclude each other" in ossia(place, "data", "show", "d.jsonl", "--json", "--html", "x", code=2).stderr


def test_show_writes_a_page_that_needs_nothing_else(place: Path, tokenizer_folder: Path) -> None:
    ossia(place, "data", "show", "d.jsonl", "--html", "page.html")
    page = (place / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", page)
    sections = re.findall(r'<section class="conversation".*?</section>', page, re.DOTALL)
    assert [re.search(r'data-name="([^"]*)"', s)[1] for s in sections] == ["d.jsonl:1", "d.jsonl:3"]  # type: ignore[index]
    assert [len(re.findall(r"<button data-turn", s)) for s in sections] == [2, 1]
    vocabulary = Vocabulary.load(tokenizer_folder)
    examples = compile_sources(place / "d.jsonl", vocabulary, DataSection()).examples
    turns = [turn for section in sections for turn in re.findall(r"<pre>(.*?)</pre>", section, re.DOTALL)]
    for turn, example in zip(turns, examples, strict=True):
        tokens = re.findall(r'<i class="([^"]*)" data-i="\[([^\]]*)\]"[^>]*>', turn)
        ids = [int(id) for _, listed in tokens for id in listed.split(",")]
        trained = [" on" in classes for classes, listed in tokens for _ in listed.split(",")]
        assert ids == example.ids and trained == [weight > 0 for weight in example.weights]
        assert "easy <b>" not in turn  # the text of the data is never markup
    assert "&lt;|channel|&gt;" in turns[0] and "👋" in turns[2]


@pytest.fixture
def agent(place: Path) -> Path:
    """A file with one conversation of three turns.

    The first two turns have thoughts, and the second has a call. The third has no thought.
    """
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "system", "content": "Be brief."}, U, A,
        {"role": "user", "content": "And in Paris?\x1b[31m"},
        {"role": "assistant", "thinking": "Look it up.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": '{"t": 21}'},
        {"role": "assistant", "thinking": "Good.", "content": "21 degrees 👋."},
        {"role": "user", "content": "Thanks"}, {"role": "assistant", "content": "Welcome."},
    ]  # fmt: skip
    (place / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    return place


def test_a_tree_holds_every_example_token_for_token(agent: Path, tokenizer_folder: Path) -> None:
    settings = DataSection(channel_weights={"analysis": 0.5})
    examples = compile_sources(agent / "a.jsonl", Vocabulary.load(tokenizer_folder), settings).examples
    weighted = ("--set", "data.channel_weights={analysis: 0.5}")
    (line,) = ossia(agent, "data", "show", "a.jsonl", "--tree", "--json", *weighted).stdout.splitlines()
    shown = json.loads(line)
    nodes = shown["nodes"]
    assert (shown["file"], shown["row"], shown["format"], shown["examples"]) == ("a.jsonl", 1, "openai", 3)
    assert shown["tokens"] == sum(map(len, examples))
    prefixes = {tuple(example.ids[:stop]) for example in examples for stop in range(1, len(example) + 1)}
    assert shown["tree_tokens"] == sum(len(node["input_ids"]) for node in nodes) == len(prefixes) < shown["tokens"]
    assert all(-1 <= node["parent"] < number for number, node in enumerate(nodes))
    for turn, example in enumerate(examples, 1):
        path = [node for node in nodes if turn in node["turns"]]
        assert [node["position"] for node in path] == [
            sum(len(before["input_ids"]) for before in path[:number]) for number in range(len(path))
        ]
        assert [id for node in path for id in node["input_ids"]] == example.ids
        for node in path:
            for place, channel in enumerate(node["channel"], node["position"]):
                own = {e.channels[place] for number, e in enumerate(examples, 1) if number in node["turns"]}
                assert {channel} == own or (channel == "assistant" and len(own) > 1)
                weight = sum(e.weights[place] for number, e in enumerate(examples, 1) if number in node["turns"])
                assert node["weight"][place - node["position"]] == pytest.approx(weight)


def test_what_a_tree_says_is_trained_are_the_edges_of_training(agent: Path, tokenizer_folder: Path) -> None:
    from ossia.data.branches import forest
    from ossia.sequences.tree import grow

    examples = compile_sources(agent / "a.jsonl", Vocabulary.load(tokenizer_folder), DataSection()).examples * 2
    (tree,), grown = grow(examples), forest(examples)
    before = {  # for the row of a token, the row of the token before it on the path
        start + place: start + place - 1 if place else tree.starts[node.parent + 1] - 1
        for start, node in zip(tree.starts, tree.nodes, strict=False)
        for place in range(len(node.ids))
        if place or node.parent >= 0
    }
    ids = [id for node in tree.nodes for id in node.ids]
    edges = {(edge.row, edge.target): edge.weight for edge in tree.edges}
    weights = [weight for branch in grown.branches for weight in branch.weights]
    told = {(before[row], ids[row]): weight for row, weight in enumerate(weights) if weight}
    assert told == edges and set(edges.values()) == {2.0}  # every example is in the list twice


def test_show_draws_a_tree(agent: Path) -> None:
    done = ossia(agent, "data", "show", "a.jsonl", "--tree")
    lines = done.stdout.splitlines()
    shared, own = re.search(r"^a\.jsonl:1 3 examples: (\d+) tokens, (\d+) with shared prefixes", done.stdout).groups()  # type: ignore[union-attr]
    counted = json.loads(ossia(agent, "data", "stats", "a.jsonl", "--json").stdout)
    assert (int(shared), int(own)) == (counted["tokens"], counted["tree_tokens"])
    assert next(line for line in lines if "shared by" in line).endswith("shared by all 3 examples")
    assert sum("●" in line for line in lines) == 5  # two trunks, and a branch for each turn
    trained = [line for line in lines if "trained  «" in line]
    assert any("analysis" in line and "easy <b>" in line for line in trained)
    assert any("commentary to functions.weather" in line for line in trained)
    assert not any("functions.weather (commentary)" in line for line in trained)
    assert "\x1b" not in done.stdout and "next: ossia data stats a.jsonl" in done.stderr
    plain = ossia(agent, "data", "show", "a.jsonl", "--tree", PYTHONIOENCODING="ascii").stdout
    assert "|-o" in plain and "●" not in plain
    one = ossia(agent, "data", "show", "d.jsonl", "--tree", "--row", "3").stdout
    assert "turn 1\n" in one and "1.00x" in one and "├" not in one
    refused = ossia(agent, "data", "show", "a.jsonl", "--tree", "--compare-template", "x.jinja", code=2).stderr
    assert "--tree and --compare-template exclude each other" in refused


def test_a_page_of_trees_folds_and_needs_nothing_else(agent: Path, tokenizer_folder: Path) -> None:
    told = ossia(agent, "data", "show", "d.jsonl", "a.jsonl", "--tree", "--html", "page.html")
    assert "trees of 3 conversations written to page.html" in told.stdout
    page = (agent / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", page)
    sections = re.findall(r'<section class="conversation".*?</section>', page, re.DOTALL)
    assert len(sections) == 3 and "all on this page: " in page
    examples = compile_sources(agent / "a.jsonl", Vocabulary.load(tokenizer_folder), DataSection()).examples
    assert sections[2].count("<details open>") == sections[2].count("</details>") == 5
    tokens = re.findall(r'<i class="([^"]*)" data-i="\[([^\]]*)\]"', sections[2])
    ids = [int(id) for _, listed in tokens for id in listed.split(",")]
    prefixes = {tuple(example.ids[:stop]) for example in examples for stop in range(1, len(example) + 1)}
    assert sorted(ids) == sorted(prefix[-1] for prefix in prefixes)
    assert sum(" on" in classes for classes, listed in tokens for _ in listed.split(",")) == len(
        {tuple(e.ids[: i + 1]) for e in examples for i, weight in enumerate(e.weights) if weight}
    )
    assert "easy <b>" not in page and "<small>turns 1-3, shared by all 3 examples</small>" in page
    before = (agent / "d.jsonl").read_bytes()
    assert "exists already" in ossia(agent, "data", "show", "a.jsonl", "--tree", "--html", "d.jsonl", code=2).stderr
    assert (agent / "d.jsonl").read_bytes() == before


def test_a_page_replaces_no_file_of_somebody_elses(place: Path) -> None:
    before = (place / "d.jsonl").read_bytes()
    refused = ossia(place, "data", "show", "d.jsonl", "--html", "d.jsonl", code=2).stderr
    assert "exists already" in refused and (place / "d.jsonl").read_bytes() == before
    for _ in range(2):
        ossia(place, "data", "show", "d.jsonl", "--html", "page.html")


def test_data_cannot_steer_the_terminal(place: Path) -> None:
    name = "\x1b[31mf\x9b\u202e"
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    rows = [{"messages": [U, {"role": "assistant", "tool_calls": [call]}], "reasoning_language": name}, {name: 1}]
    file = place / "a\x1b[1m.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for command, code in (("check", 2), ("show", 0), ("stats", 0)):
        done = ossia(place, "data", command, str(file), code=code)
        assert not set("\x1b\x9b\u202e") & set(done.stdout + done.stderr), command
    missing = ossia(place, "data", "check", "no\x1b[31m.jsonl", code=2)
    assert "\x1b" not in missing.stderr


def test_a_terminal_without_unicode_gets_escapes(place: Path) -> None:
    assert "\\xab" in ossia(place, "data", "show", "d.jsonl", PYTHONIOENCODING="ascii").stdout


def test_the_next_command_repeats_the_options(place: Path) -> None:
    (place / "e.jsonl").write_text(json.dumps({"q": "a?", "r": "b", "cot": "c"}))
    change = "data.columns={q: prompt, r: completion, cot: thinking}"
    told = ossia(place, "data", "check", "e.jsonl", "--set", change)
    assert f"next: ossia data show e.jsonl --set '{change}'" in told.stderr
    refused = ossia(place, "data", "check", "d.jsonl", "--set", "data.train=e.jsonl", code=2)
    assert "named already" in refused.stderr


def test_check_names_rows_and_exits_with_2(place: Path) -> None:
    done = ossia(place, "data", "check", "d.jsonl", code=2)
    assert "d.jsonl:2 messages[1].role: error: unknown role 'asistant' (did you mean \"assistant\"?)" in done.stdout
    assert "3 rows (2 openai, 1 prompt-completion): 2 usable, 1 errors" in done.stdout
    found = json.loads(ossia(place, "data", "check", "d.jsonl", "--json", code=2).stdout)
    assert (found["rows"], found["usable"], found["errors"]) == (3, 2, 1)
    assert [(p["line"], p["code"], p["path"]) for p in found["problems"] if p["level"] == "error"] == [
        (2, "unknown-role", "messages[1].role")
    ]


def test_check_sums_up_many_problems_of_a_kind(place: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "completion": f"Reply {n}."} for n in range(30)]
    (place / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ossia(place, "data", "check", "d.jsonl").stdout
    assert told.count("no chain of thought") == 20 and "and 10 more of no-thought (--all prints them)" in told
    assert ossia(place, "data", "check", "d.jsonl", "--all").stdout.count("no chain of thought") == 30
    assert len(json.loads(ossia(place, "data", "check", "d.jsonl", "--json").stdout)["problems"]) == 30


def test_a_preference_pair_shows_both_sides_and_trains_one(place: Path) -> None:
    (place / "d.jsonl").write_text(json.dumps({"prompt": "2+2?", "chosen": "4", "rejected": "5"}))
    shown = ossia(place, "data", "show", "d.jsonl")
    assert shown.stdout.count("d.jsonl:1 turn 1") == 2 and "rejected: not trained" in shown.stdout
    assert "the rejected one is not" in shown.stderr
    (line,) = ossia(place, "data", "show", "d.jsonl", "--json").stdout.splitlines()
    assert json.loads(line)["format"] == "trl-preference"
    assert "answers kept beside the trained one: rejected 1" in ossia(place, "data", "stats", "d.jsonl").stdout


def test_every_sample_is_converted_shown_and_checked() -> None:
    folder = Path(__file__).parents[2] / "examples" / "formats"
    found = json.loads(ossia(folder, "data", "check", ".", "--json", code=2).stdout)
    formats = set(get_args(Format)) - {"auto"}
    assert set(found["formats"]) == formats
    assert [(p["file"], p["line"], p["code"]) for p in found["problems"] if p["level"] == "error"] == [
        ("openr1.jsonl", 3, "no-correct-trace")
    ]
    lines = [json.loads(line) for line in ossia(folder, "data", "show", ".", "--json").stdout.splitlines()]
    assert {(Path(line["file"]).stem, line["format"]) for line in lines} == {
        (f, f) for f in get_args(Format) if f != "auto"
    }
    assert all(len(line["input_ids"]) == len(line["trained"]) == len(line["channel"]) for line in lines)
    assert all(any(line["trained"]) for line in lines)


def test_check_against_held_out_data(place: Path) -> None:
    (place / "test.jsonl").write_text(json.dumps(ROWS[2]) + "\n", encoding="utf-8")
    done = ossia(place, "data", "check", "d.jsonl", "--against", "test.jsonl", code=2)
    assert "test.jsonl:1: warning: the training data have the same conversation: d.jsonl:3" in done.stdout


def test_check_writes_a_repaired_copy(place: Path) -> None:
    done = ossia(place, "data", "check", "d.jsonl", "--fix", "fixed.jsonl")
    assert "d.jsonl:2: messages[1].role: role 'asistant' -> 'assistant'" in done.stdout
    assert "3 rows: 2 unchanged, 1 repaired, 0 left out" in done.stdout
    assert "0 errors" in ossia(place, "data", "check", "fixed.jsonl").stdout
    assert "exists already" in ossia(place, "data", "check", "d.jsonl", "--fix", "fixed.jsonl", code=2).stderr
    assert "JSON lines" in ossia(place, "data", "check", "d.jsonl", "--fix", "fixed.csv", code=2).stderr
    both = ossia(place, "data", "check", "d.jsonl", "--fix", "new.jsonl", "--against", "d.jsonl", code=2).stderr
    assert "--fix cannot be combined with" in both and not (place / "new.jsonl").exists()
    (place / "bad.jsonl").write_text("{broken\n")
    nothing = ossia(place, "data", "check", "bad.jsonl", "--fix", "none.jsonl", code=2).stdout
    assert "1 left out; nothing to write, the rest to none.rejected.jsonl" in nothing
    assert not (place / "none.jsonl").exists()


def test_stats_count_and_tell_what_trees_save(place: Path) -> None:
    told = ossia(place, "data", "stats", "d.jsonl", "--at", "64,100").stdout
    assert "2 conversations, 3 examples" in told and "within a step of 16 examples" in told and "over 64; " in told
    counted = json.loads(ossia(place, "data", "stats", "d.jsonl", "--json").stdout)
    assert counted["rows"] == 2 and counted["turns"] == {"1": 1, "2": 1}
    assert 0 < counted["tree_tokens_across"] < counted["tree_tokens"] < counted["tokens"]
    assert counted["tree_tokens_steps"] == counted["tree_tokens_across"] and counted["examples_per_step"] == 16
    alone = ["--set", "train.examples_per_step=1"]
    counted = json.loads(ossia(place, "data", "stats", "d.jsonl", "--json", *alone).stdout)
    assert counted["tree_tokens_steps"] == counted["tokens"]
    assert "lengths are whole numbers" in ossia(place, "data", "stats", "d.jsonl", "--at", "1k", code=2).stderr


def test_a_template_is_compared_on_the_users_data(place: Path) -> None:
    from ossia.harmony import chat_template

    (place / "same.jinja").write_text(chat_template(), encoding="utf-8")
    (place / "other.jinja").write_text(chat_template().replace("Knowledge cutoff", "Cutoff"), encoding="utf-8")
    (place / "broken.jinja").write_text("{{ raise_exception('no') }}", encoding="utf-8")
    (place / "d.jsonl").write_text(json.dumps(ROWS[0]) + "\n", encoding="utf-8")
    same = ossia(place, "data", "show", "d.jsonl", "--compare-template", "same.jinja").stdout
    assert same == "1 conversations: 1 with equal tokens, 0 refused, 0 places where same.jinja differs\n"
    other = ossia(place, "data", "show", "d.jsonl", "--compare-template", "other.jinja", code=1).stdout
    assert "Knowledge" in other and "1 conversations: 0 with equal tokens, 0 refused, 1 places" in other
    broken = ossia(place, "data", "show", "d.jsonl", "--compare-template", "broken.jinja", code=1).stdout
    assert "the template refuses it" in broken and "1 refused" in broken
    (place / "wrong.jinja").write_text("a\n{% if %}")
    wrong = ossia(place, "data", "show", "d.jsonl", "--compare-template", "wrong.jinja", code=2).stderr
    assert "wrong.jinja:2: the template is not valid Jinja" in wrong
    refused = ossia(place, "data", "show", "d.jsonl", "--compare-template", "missing.jinja", code=2).stderr
    assert "missing.jinja" in refused


def test_a_recipe_in_place_of_files(place: Path) -> None:
    (place / "r.yaml").write_text(
        "data:\n  train:\n    - path: d.jsonl\n      limit: 1\n  max_tokens: 128\n"
        "train: {tokens_per_micro_batch: 128}\n"
    )
    assert "1 usable" in ossia(place, "data", "check", "r.yaml").stdout
    (place / "r.yaml").write_text("data:\n  train:\n    - pth: d.jsonl\n")
    refused = ossia(place, "data", "check", "r.yaml", code=2).stderr
    assert "r.yaml:3" in refused and "did you mean path?" in refused


def test_a_closed_pipe_ends_quietly(place: Path) -> None:
    command = f"{sys.executable} -m ossia data show d.jsonl --json | head -c 1"
    done = subprocess.run(command, cwd=place, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "{" and "Traceback" not in done.stderr


def test_a_hub_data_set_through_the_real_library(place: Path) -> None:
    """`datasets` reads a folder of that name like a repository of the hub, with its files, splits and nulls."""
    folder = place / "org" / "name"
    folder.mkdir(parents=True)
    rows = [
        {"messages": [U, A], "reasoning_effort": "high"},
        {"messages": [{"role": "user", "content": "Another?"}, {"role": "assistant", "content": "Yes."}], "note": "x"},
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text(json.dumps({"messages": [U, A]}) + "\n")
    env = {"HF_HOME": str(place / "hf"), "HF_DATASETS_CACHE": str(place / "hf" / "datasets")}
    lines = ossia(place, "data", "show", "hub:org/name", "--json", **env).stdout.splitlines()
    shown = [json.loads(line) for line in lines]
    assert [(x["file"], x["row"], x["format"]) for x in shown] == [
        ("hub:org/name@train", 1, "openai"),
        ("hub:org/name@train", 2, "openai"),
    ]
    assert set(shown[0]["channel"]) >= {"analysis", "final"} and "analysis" not in shown[1]["channel"]
    (place / "r.yaml").write_text("data:\n  train:\n    - {path: 'hub:org/name', split: 'train[:50%]'}\n")
    assert "1 rows (1 openai): 1 usable" in ossia(place, "data", "check", "r.yaml", **env).stdout
    assert "1 rows (1 openai): 1 usable" in ossia(place, "data", "check", "hub:org/name@test", **env).stdout
    refused = ossia(place, "data", "check", "hub:org/name@dev", code=2, **env).stderr
    assert "The data set cannot be loaded" in refused


def test_plan_and_training_tell_what_sharing_saves(agent: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from ossia import recipes
    from ossia.cli import train_
    from ossia.data.prepare import prepare
    from ossia.workflows import train as workflow

    (agent / "r.yaml").write_text("data: {train: a.jsonl, validation_share: 0}\n")
    counted = json.loads(ossia(agent, "data", "stats", "r.yaml", "--json").stdout)
    tokens, shared = counted["tokens"], counted["tree_tokens_steps"]
    plan = json.loads(ossia(agent, "plan", "r.yaml", "--no-time", "--json").stdout)
    assert (plan["examples"]["tokens"], plan["examples"]["shared"], plan["work"]["tokens"]) == (tokens, shared, shared)
    assert plan["sharing"]["on"] and f"{shared:,} tokens instead of {tokens:,}" in plan["sharing"]["reason"]
    off = ossia(agent, "plan", "r.yaml", "--no-time", "--set", "train.share_prefixes=off").stdout
    assert "prefixes  not shared: train.share_prefixes is off" in off and f"micro-batches, {tokens:,} tokens" in off
    for word in ("auto", "off"):
        recipe = recipes.load_recipe(str(agent / "r.yaml"), [f"train.share_prefixes={word}"])
        recipe.data.train[0] = str(agent / "a.jsonl")
        prepared = prepare(recipe.data, Vocabulary.load(), recipe.train.seed)
        screen = train_.Screen(Console(file=(shown := StringIO()), width=200))
        saving = workflow._saving(recipe, prepared)
        screen.header(workflow._announcement("run", recipe, prepared, saving))
        told = f"in steps of 16 examples: {tokens:,} tokens, {shared:,} with shared prefixes" in shown.getvalue()
        assert told == (word == "auto")
