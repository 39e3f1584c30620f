"""Tests of the preview, which shows every token once and marks the trained tokens."""

from __future__ import annotations

import io
import random
from pathlib import Path

from rich.console import Console

from ossia.config import DataSection
from ossia.data import examples_of
from ossia.errors import harmless
from ossia.harmony import conversation as c
from ossia.harmony.preview import preview, preview_plain
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from support import harmony_samples as samples


def test_plain_preview_marks_what_is_trained(tokenizer_folder: Path) -> None:
    vocabulary = Vocabulary.load(tokenizer_folder)
    conversation = c.Conversation((c.user("Hi 👩‍🚀"), c.thought("t"), c.answer("𒀱")), system=None)
    (example,) = examples_of(conversation, vocabulary)
    assert preview_plain(example.ids, example.weights, example.channels, vocabulary) == (
        "«trained» given\n\n<|start|>user<|message|>Hi 👩‍🚀<|end|>\n"
        "<|start|>assistant«<|channel|>analysis<|message|>t<|end|>\n"
        "<|start|>assistant<|channel|>final<|message|>𒀱<|return|>»"
    )


def test_no_text_is_lost_or_doubled_and_styles_follow_the_weights(tokenizer_folder: Path) -> None:
    vocabulary, rng = Vocabulary.load(tokenizer_folder), random.Random(41)
    for _ in range(100):
        for example in examples_of(samples.conversation(rng), vocabulary, DataSection(max_tokens=131_072)):
            text = preview(example.ids, example.weights, example.channels, vocabulary, legend=False)
            shown = harmless(vocabulary.decode(example.ids))
            assert text.plain.replace("\n<|start|>", "<|start|>") == shown.replace("\n<|start|>", "<|start|>")
            underlined = "".join(
                text.plain[s.start : s.end] for s in text.spans if getattr(s.style, "underline", False)
            )
            trained = [i for i, w in zip(example.ids, example.weights, strict=True) if w]
            assert underlined == harmless(vocabulary.decode(trained))


def test_colours_reach_the_terminal(tokenizer_folder: Path) -> None:
    vocabulary = Vocabulary.load(tokenizer_folder)
    (example,) = examples_of(c.Conversation((c.user("Hi"), c.answer("A"))), vocabulary)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=200)
    console.print(preview(example.ids, example.weights, example.channels, vocabulary))
    assert "\x1b[1;4;32m" in out.getvalue() and "given" in out.getvalue()


def test_data_cannot_steer_the_terminal(tokenizer_folder: Path) -> None:
    vocabulary = Vocabulary.load(tokenizer_folder)
    text = "".join(map(chr, range(0xA0)))
    shown = preview_plain(vocabulary.encode(text), [0.0] * 500, ["user"] * 500, vocabulary)
    assert [character for character in shown if not character.isprintable() and character not in "\n\t"] == []
