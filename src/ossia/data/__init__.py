"""Stage 1: files in, training examples out.

    sources    files, folders, hub data sets        -> rows that know their place
    formats    rows, their format recognised        -> conversations of Harmony messages
    checks     what is wrong, where, what to do     -> problems; a bad row never stops a good one
    examples   one per assistant turn               -> token ids with a weight each
    stats      lengths, trained share, channels

    loaded = load_conversations(["data.jsonl"])
    examples = [e for c in loaded.conversations for e in examples_of(c, Vocabulary.load(folder))]

No torch in here.
"""

from __future__ import annotations

from ossia.data.examples import Example, examples_of, turns_of
from ossia.data.load import Loaded, check, load_conversations
from ossia.data.settings import DataSettings
from ossia.data.stats import Statistics, statistics
from ossia.harmony.problem import Problem

__all__ = [
    "DataSettings",
    "Example",
    "Loaded",
    "Problem",
    "Statistics",
    "check",
    "examples_of",
    "load_conversations",
    "statistics",
    "turns_of",
]
