"""What a training example is, and what can be asked of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ossia.errors import UserError


class TrainingExample(Protocol):
    """A sequence of n tokens: ids, and per token its weight and its channel. All three sequences have n entries.

    weights[i] is the weight of predicting ids[i]; the first one is ignored, because nothing comes before it.
    channels[i] names the channel that the token belongs to. They may be put together anew at each access; `len` is
    cheap. Compiled examples also name their `conversation` and their `turn` (`ossia.sequences.order`).
    """

    def __len__(self) -> int: ...
    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def weights(self) -> Sequence[float]: ...
    @property
    def channels(self) -> Sequence[str | None]: ...


class Labelled:
    """A row with input_ids and labels, as an example.

    Raises:
        ValueError: a row without input_ids or labels, or a label that is neither -100 nor the token at its place.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        if missing := {"input_ids", "labels"} - set(row):
            raise ValueError(f"a row has no {' and no '.join(sorted(missing))}")
        self.ids = [int(token) for token in row["input_ids"]]
        labels = [int(label) for label in row["labels"]]
        if any(label not in (-100, token) for token, label in zip(self.ids, labels, strict=True)):
            raise ValueError("labels must repeat input_ids where they are not -100")
        self.weights = [float(label != -100) for label in labels]
        self.channels: list[str | None] = [None] * len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


def prompt_of(example: TrainingExample) -> list[int]:
    """Return the tokens before the first supervised one: what the model would be asked to continue."""
    first = next(i for i, weight in enumerate(example.weights) if weight)
    return list(example.ids[:first])


def check_length(tokens: int, tokens_per_micro_batch: int) -> None:
    """
    Raises:
        UserError: an example of so many tokens does not fit into a micro-batch.
    """
    if tokens > tokens_per_micro_batch:
        raise UserError(
            f"an example has {tokens} tokens, a micro-batch holds {tokens_per_micro_batch}",
            do=f"--set train.tokens_per_micro_batch={tokens}, or a smaller data.max_tokens",
        )
