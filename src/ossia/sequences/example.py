"""A training example: its protocol, one implementation for labelled rows, its prompt and its greatest length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ossia.errors import UserError


class TrainingExample(Protocol):
    """A sequence of n tokens. `ids`, `weights` and `channels` have n entries each.

    Each access may build these sequences again. `len` is cheap. Compiled examples also have the attributes
    `conversation` and `turn` (`ossia.sequences.order`).
    """

    def __len__(self) -> int: ...
    @property
    def ids(self) -> Sequence[int]:
        """The token ids."""
        ...

    @property
    def weights(self) -> Sequence[float]:
        """Per token: the weight of its prediction in the loss. The first one is ignored, as no token precedes it."""
        ...

    @property
    def channels(self) -> Sequence[str | None]:
        """Per token: the channel that it belongs to."""
        ...


class Labelled:
    """An example made from a row with input_ids and labels.

    Raises:
        ValueError: the row has no input_ids or no labels, or a label is neither -100 nor the token at its position.
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
    """Return the ids of the tokens before the first supervised one, which are the prompt of the example."""
    first = next(i for i, weight in enumerate(example.weights) if weight)
    return list(example.ids[:first])


def check_length(tokens: int, tokens_per_micro_batch: int) -> None:
    """Check that an example with this number of tokens fits into a micro-batch.

    Raises:
        UserError: the example has more tokens than a micro-batch.
    """
    if tokens > tokens_per_micro_batch:
        raise UserError(
            f"an example has {tokens} tokens, a micro-batch holds {tokens_per_micro_batch}",
            do=f"--set train.tokens_per_micro_batch={tokens}, or a smaller data.max_tokens",
        )
