"""Stage 1: files in, training examples out.

    sources    files, folders, hub data sets        -> rows that know their place
    formats    rows, their format recognised        -> conversations of Harmony messages
    checks     what is wrong, where, what to do     -> problems; a bad row never stops a good one
    load       these three, row by row              -> conversations and problems
    kinds      kinds of messages                    -> what the model still sees, where its turns are
    examples   one per assistant turn               -> token ids with a weight each
    rendered   a conversation as tokens, and its examples without a copy of what they share
    compile    all of that on every core            -> conversations as tokens
    cache      the same as bytes, kept for the next time
    prepare    a recipe's section `data`            -> the examples that training takes

    corpus     what rows show together              -> near-duplicates, leaks, labels that do not fit
    fix        a repaired copy of data sets; `repairs` has the single repairs
    loose_json JSON as data sets really have it
    stats      lengths, trained share, channels, what trees would save
    branches   the prefix tree of a conversation's examples, to look at
    page       examples or trees as one HTML file
    views      examples or trees as JSON, for other programs
    templates  what a chat template makes of a conversation

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
