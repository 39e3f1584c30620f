"""Stage 1: files in, training examples out.

    sources    files, folders, hub data sets        -> rows that know their place
    formats    rows, their format recognised        -> conversations of Harmony messages
    checks     what is wrong, where, what to do     -> problems; a bad row never stops a good one
    examples   one per assistant turn               -> token ids with a weight each
    compile    all of that on every core, cached    -> conversations as tokens (`rendered`), packed in `shard`s
    corpus     what rows show together              -> near-duplicates, leaks, labels that do not fit
    stats      lengths, trained share, channels, what trees would save
    branches   the prefix tree of a conversation's examples, to look at

    compiled = compile_sources(["data.jsonl"], Vocabulary.load(folder))
    compiled.examples[0].ids

No torch in here.
"""

from __future__ import annotations

from ossia.data.compile import Compiled, compile_sources
from ossia.data.examples import examples_of
from ossia.data.kinds import turns_of
from ossia.data.load import Loaded, load_conversations
from ossia.data.rendered import Example, Rendered
from ossia.data.stats import Statistics, statistics
from ossia.harmony.problem import Problem

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
