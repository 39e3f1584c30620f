"""The stage data: files become training examples.

    sources      files, folders and hub data sets -> rows, each with its file and line
    loose_json   readers of JSON as data sets contain it
    formats/     the row formats: a row -> a conversation of Harmony messages
    kinds        kinds of messages, the context of a turn, and the message ranges of turns
    checks       the problems of one row, each with its place and remedy
    load         rows -> conversations and problems
    rendered     a conversation as tokens, and its training examples without copies of their common tokens
    examples     a conversation -> token ids with weights, and one training example per assistant turn
    cache        compiled rows as bytes, and the folder that keeps them
    compile      sources -> compiled conversations, on all cores
    prepare      the section `data` of a recipe -> the examples of training and validation
    corpus       checks across rows: near-duplicates, leaks and effort labels
    repairs      the single repairs of a row
    fix          a repaired copy of data sets
    stats        token counts: lengths, trained share, channels, saving by prefix trees
    branches     the prefix tree of a conversation's examples, for display
    page         examples or prefix trees as one HTML file
    views        examples or prefix trees as JSON objects
    templates    comparison of a chat template's tokens with the renderer's

`compile_sources(["data.jsonl"], vocabulary).examples` are the training examples of a file. A row with an error is left
out, and the other rows are still used. This package does not import torch.
"""

from __future__ import annotations

from ossia.data.compile import Compiled, compile_sources
from ossia.data.examples import examples_of
from ossia.data.kinds import turns_of
from ossia.data.load import Loaded, load_conversations
from ossia.data.rendered import Example, Rendered
from ossia.data.stats import Statistics, statistics
from ossia.errors import Problem

__all__ = [
    "Compiled",
    "Example",
    "Loaded",
    "Problem",
    "Rendered",
    "Statistics",
    "compile_sources",
    "examples_of",
    "load_conversations",
    "statistics",
    "turns_of",
]
