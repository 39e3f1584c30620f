"""The division of a step's examples into micro-batches. `ossia.sequences.order` chooses the examples of a step.

A step has a fixed number of examples. Its loss is the mean over all their supervised tokens, or over turns or
conversations (`ossia.sequences.weighting`). It has one denominator, so it does not depend on how the examples are
divided into micro-batches. A micro-batch is one flat batch of at most `tokens_per_micro_batch` tokens. It holds prefix
trees of the step's examples, or with sharing off the examples end to end. Loss and gradients are the same in both
cases.
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
    """A function that makes a step's batch from its examples, with the keys of `ossia.train.objective.StepBatch`.

    Its `names` are the channels of a micro-batch's supervised triples. Its `repeated_tokens` come from trees that did
    not fit into one micro-batch, so that their shared prefixes are computed again. In a job of several processes, each
    process passes all examples of the step and gets its own micro-batches.
    """

    tokens_per_micro_batch: int
    """Most tokens of a micro-batch."""
    share: bool = True
    """Compute common prefixes of the examples of a micro-batch once (`ossia.sequences.tree`)."""
    process: int = 0
    """Number of this process, from 0."""
    processes: int = 1

    def __call__(self, examples: Sequence[TrainingExample]) -> dict[str, Any]:
        """Return the batch of a step, with its tensors on the CPU.

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
    """A collator for other training loops: it turns a batch of rows into the inputs of one call of an Ossia model.

    A row is an example (`ossia.sequences.example`), or a mapping with input_ids and labels of equal length. A label is
    -100 where nothing is trained, as TRL prepares them. Common prefixes of the rows are computed once. So put the turns
    of a conversation, or conversations with the same system message, into one batch. The result has no padding:

        loss = model(**TreeCollator()(rows)).loss

    The loss is the mean over the trained tokens of all rows. If a step has several batches of different sizes, pass the
    step's number of trained tokens as `denominator`. With dropout, the load-balancing loss or NEFTune, shared tokens
    have another effect than tokens of separate rows. See `model_obstacles`.
    """

    share: bool = True
    """Off: the rows end to end, for comparison."""

    def __call__(self, rows: Sequence[Mapping[str, Any] | TrainingExample]) -> dict[str, torch.Tensor]:
        """Return the inputs on the CPU, ids int64 and weights float32 (`ossia.model.batch.FlatBatch`).

        Raises:
            ValueError: a row lacks input_ids or labels, they differ in length, or a label is neither -100 nor the token
                at its place.
        """
        examples = [Labelled(row) if isinstance(row, Mapping) else row for row in rows]
        return from_trees(grow(examples) if self.share else alone(examples)).inputs()


def model_obstacles(model: nn.Module, balance: float = 0.0, neftune_alpha: float | None = None) -> Obstacles:
    """Return the features of a model that give shared tokens another effect than tokens of separate sequences.

    Args:
        model: the model with its adapter, and with its hooks if it has any.
        balance: coefficient of the load-balancing loss.
        neftune_alpha: coefficient of the noise on embeddings (NEFTune).
    """
    dropout = max((module.p for module in model.modules() if isinstance(module, nn.Dropout)), default=0.0)
    embeddings: list[Any] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    noise = neftune_alpha or any(getattr(module, "neftune_noise_alpha", None) for module in embeddings)
    return Obstacles(dropout, bool(balance), bool(noise))


def micro_batches_of(trees: Sequence[Tree], most: int, longest: int, processes: int = 1) -> list[list[Tree]]:
    """Return the trees, cut and packed into few micro-batches of at most `most` tokens.

    Args:
        most: most tokens of a micro-batch.
        longest: tokens of the longest example, which is the least possible bound of a micro-batch.
        processes: number of processes. For several, micro-batches are made smaller, as long as their number stays
            within the next multiple of `processes`.
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
    """Return the micro-batches of each process. A process may have none.

    Each micro-batch, the largest first, goes to the process with the fewest tokens (Graham 1969).
    """
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
    """Return a micro-batch of the examples without supervision, for which the model returns only hidden states."""
    inputs = from_rows((example.ids, example.weights) for example in examples).inputs()
    return {name: value for name, value in inputs.items() if name not in ("rows", "targets", "weights")}


def idle_micro_batch() -> dict[str, torch.Tensor]:
    """Return a micro-batch of one token without supervision, for a process that has no work left while others have."""
    return from_rows([([0], [0.0])]).inputs()


def cut(examples: Iterable[TrainingExample], tokens_per_micro_batch: int) -> Iterator[list[TrainingExample]]:
    """Yield groups of examples of at most `tokens_per_micro_batch` tokens, similar lengths together.

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
    """Return a SHA-256 of the examples' tokens, weights and turns, to check that a resumed run has the same data."""
    digest = hashlib.sha256()
    for examples in sets:
        digest.update(f"{len(examples)};".encode())
        for example in examples:
            digest.update(torch.tensor(list(example.ids), dtype=torch.int32).numpy().tobytes())
            digest.update(torch.tensor(list(example.weights), dtype=torch.float32).numpy().tobytes())
            digest.update(f"{getattr(example, 'turn', 0)};".encode())  # the order of training depends on the turns
    return digest.hexdigest()
