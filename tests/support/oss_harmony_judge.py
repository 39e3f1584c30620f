"""Renders conversations with oss-harmony, the fork of openai-harmony that vLLM uses, in a separate process.

Both have the import name `openai_harmony`. So oss-harmony is installed into a folder beside the environment's packages
(tests/oss-harmony.txt). `render` starts this file as a program. The program reads a conversation in the library's JSON
per line, and writes its token ids as a JSON list per line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(sys.prefix) / "oss-harmony"
MISSING = "oss-harmony is not installed beside the environment's packages (make setup does it)"


def is_installed() -> bool:
    return (FOLDER / "openai_harmony").is_dir()


def render(conversations: Sequence[str]) -> list[list[int]]:
    """Return the ids of conversations, which are JSON texts of the library. No thoughts are dropped."""
    environment = {key: value for key, value in os.environ.items() if key != "TIKTOKEN_ENCODINGS_BASE"}
    environment["PYTHONPATH"] = str(FOLDER)
    text = "".join(f"{line}\n" for line in conversations)
    done = subprocess.run(
        [sys.executable, __file__], input=text, capture_output=True, encoding="utf-8", check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    import openai_harmony as oh

    assert Path(oh.__file__).is_relative_to(FOLDER), oh.__file__
    encoding = oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)
    keep_all = oh.RenderConversationConfig(auto_drop_analysis=False)
    for line in sys.stdin:
        given = json.loads(line)
        for content in (part for message in given["messages"] for part in message["content"]):
            if content["type"] == "system_content":  # otherwise missing fields would get their defaults
                content.update({key: content.get(key) for key in oh.SystemContent.model_fields})
        conversation = oh.Conversation.from_json(json.dumps(given))
        print(json.dumps(encoding.render_conversation(conversation, keep_all)))


if __name__ == "__main__":
    main()
