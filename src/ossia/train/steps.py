"""From examples to optimiser steps.

A step is a number of examples. Its loss is the mean over all their supervised tokens (or turns, or conversations:
`ossia.sequences.weighting`), with one denominator, however the examples are cut into micro-batches. A micro-batch is
one flat batch of at most `tokens_per_micro_batch` tokens: prefix trees of the step's examples, or with sharing off the
examples end to end.
Loss and gradients are the same, so a step is the same, too.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ossia.model.batch import from_rows, from_trees
from ossia.sequences.example import Labelled, TrainingExample, check_length
from ossia.sequences.sharing import Obstacles
from ossia.sequences.tree import Tree, alone, grow, pack_trees, split_tree


@dataclass(frozen=True)
class Collator:
    """Makes a step's batch out of its examples.

    The result has: micro_batches, a list of the model's inputs; names, per micro-batch the channel of each triple;
    example_tokens, the tokens that the step's examples have; repeated_tokens, those of shared prefixes that are
    computed again because a tree did not fit into a micro-batch; examples, their number; seconds, how long this took.
    In a job of several processes each gives it the whole step and is given the micro-batches that are its own.
    """

    tokens_per_micro_batch: int
    share: bool = True
    """Compute what examples begin with in common once (`ossia.sequences.tree`), within a micro-batch."""
    process: int = 0
    processes: int = 1

    def __call__(self, examples: Sequence[TrainingExample]) -> dict[str, Any]:
        """
        Raises:
            UserError: one example alone is longer than a micro-batch.
        """
        began = time.perf_counter()
        longest = max(map(len, examples), default=0)
        check_length(longest, self.tokens_per_micro_batch)
        trees = grow(examples) if self.share else alone(examples)
        micro_batches = micro_batches_of(trees, self.tokens_per_micro_batch, longest, self.processes)
        groups = shared_out(micro_batches, self.processes)
        mine = groups[self.process]
        return {
            "micro_batches": [from_trees(group).inputs() for group in mine],
            "names": [[edge.channel or "other" for tree in group for edge in tree.edges] for group in mine],
            "example_tokens": sum(map(len, examples)),
            "repeated_tokens": _tokens(tree for part in groups for group in part for tree in group) - _tokens(trees),
            "examples": len(examples),
            "seconds": time.perf_counter() - began,
        }


@dataclass(frozen=True)
class TreeCollator:
    """For other people's training loops: turns a batch of rows into the inputs of one call of an Ossia model.

    A row is a mapping with input_ids and labels of equal length, -100 where nothing is trained (as TRL prepares them),
    or an example (`ossia.sequences.example`). What rows begin with in common is computed once, so the turns of a
    conversation, or conversations with the same system message, should be in one batch. The result has no padding:

        loss = model(**TreeCollator()(rows)).loss

    is the mean over the trained tokens of all rows. (Where batches of different sizes make up a step, pass the step's
    count as `denominator`.) Dropout, the load-balancing loss and NEFTune give shared tokens another effect than
    separate rows: see `model_obstacles`.
    """

    share: bool = True
    """Off: the rows end to end, to compare with."""

    def __call__(self, rows: Sequence[Mapping[str, Any] | TrainingExample]) -> dict[str, torch.Tensor]:
        """Return the inputs on the CPU, ids int64 and weights float32 (`ossia.model.batch.FlatBatch`).

        Raises:
            ValueError: a row without input_ids or labels, or a label that is neither -100 nor the token at its place.
        """
        examples = [Labelled(row) if isinstance(row, Mapping) else row for row in rows]
        return from_trees(grow(examples) if self.share else alone(examples)).inputs()


def model_obstacles(model: nn.Module, balance: float = 0.0, neftune_alpha: float | None = None) -> Obstacles:
    """Return what of a model keeps a token that sequences share from counting as in separate sequences.

    Args:
        model: with its adapter, and with hooks if it has any.
        balance: coefficient of the load-balancing loss.
        neftune_alpha: of noise on embeddings.
    """
    dropout = max((module.p for module in model.modules() if isinstance(module, nn.Dropout)), default=0.0)
    embeddings: list[Any] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    noise = neftune_alpha or any(getattr(module, "neftune_noise_alpha", None) for module in embeddings)
    return Obstacles(dropout, bool(balance), bool(noise))


def micro_batches_of(trees: Sequence[Tree], most: int, longest: int, processes: int = 1) -> list[list[Tree]]:
    """Cut trees into micro-batches of at most `most` tokens, as few as possible.

    Args:
        processes: for several, the number of micro-batches is a multiple of theirs.
        longest: tokens of the longest example; no micro-batch can be made smaller.
    """
    micro_batches = _packed(trees, most)
    if processes == 1:
        return micro_batches
    wanted = -(-len(micro_batches) // processes) * processes
    smaller = max(longest, -(-_tokens(trees) // wanted))
    while smaller < most:
        tried = _packed(trees, smaller)
        if len(tried) <= wanted:
            return tried
        smaller += max(1, smaller // 16)
    return micro_batches


def shared_out(micro_batches: Sequence[list[Tree]], processes: int) -> list[list[list[Tree]]]:
    """The micro-batches of each process, the largest first to whoever has least (Graham 1969). Some may have none."""
    groups: list[list[list[Tree]]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for number in sorted(range(len(micro_batches)), key=lambda number: -_tokens(micro_batches[number])):
        process = loads.index(min(loads))
        groups[process].append(micro_batches[number])
        loads[process] += _tokens(micro_batches[number])
    return groups


def _packed(trees: Sequence[Tree], most: int) -> list[list[Tree]]:
    return pack_trees([piece for tree in trees for piece in split_tree(tree, most)], most)


def _tokens(trees: Iterable[Tree]) -> int:
    return sum(tree.tokens for tree in trees)


def unsupervised(examples: Iterable[TrainingExample]) -> dict[str, torch.Tensor]:
    """A micro-batch of the examples that asks for hidden states only."""
    inputs = from_rows((example.ids, example.weights) for example in examples).inputs()
    return {name: value for name, value in inputs.items() if name not in ("rows", "targets", "weights")}


def idle_micro_batch() -> dict[str, torch.Tensor]:
    """One token without supervision: the micro-batch of a process that has no work left while others have."""
    return from_rows([([0], [0.0])]).inputs()


def cut(examples: Iterable[TrainingExample], tokens_per_micro_batch: int) -> Iterator[list[TrainingExample]]:
    """Group examples into micro-batches of at most `tokens_per_micro_batch` tokens, similar lengths together.

    Raises:
        UserError: one example alone is longer than a micro-batch.
    """
    group: list[TrainingExample] = []
    total = 0
    for example in sorted(examples, key=len):
        check_length(len(example), tokens_per_micro_batch)
        if total + len(example) > tokens_per_micro_batch and group:
            yield group
            group, total = [], 0
        group.append(example)
        total += len(example)
    if group:
        yield group


def fingerprint(*sets: Sequence[TrainingExample]) -> str:
    """Return a hash of the examples' tokens, weights and turns, to tell whether a resumed run sees the same data."""
    digest = hashlib.sha256()
    for examples in sets:
        digest.update(f"{len(examples)};".encode())
        for example in examples:
            digest.update(torch.tensor(list(example.ids), dtype=torch.int32).numpy().tobytes())
            digest.update(torch.tensor(list(example.weights), dtype=torch.float32).numpy().tobytes())
            digest.update(f"{getattr(example, 'turn', 0)};".encode())  # the order keeps conversations together
    return digest.hexdigest()
