"""The samples of every row format, and functions to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from ossia.config import DataSection, Format
from ossia.data.formats import to_conversation
from ossia.errors import Problem
from ossia.harmony.conversation import Conversation

FOLDER = Path(__file__).parents[2] / "examples" / "formats"
NAMES = [name for name in get_args(Format) if name != "auto"]


def rows_of(name: str) -> list[dict[str, Any]]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


SAMPLES = [(name, number) for name in NAMES for number in range(len(rows_of(name)))]


def read(row: dict[str, Any], **choices: Any) -> tuple[Conversation, list[Problem]]:
    problems: list[Problem] = []
    return to_conversation(row, DataSection(**choices), report=problems.append), problems


def codes(problems: list[Problem]) -> list[tuple[str, str, str]]:
    return [(problem.level, problem.code, problem.path) for problem in problems]
