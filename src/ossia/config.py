"""The schema of a recipe: the settings of the model, the data, the adapter, training, evaluation and chat.

The docstring of a field is its only documentation. `ossia recipes schema` and docs/config.md are made from it. The
code that reads and merges files is in `ossia.recipes`.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Format = Literal[
    "auto", "openai", "openai-responses", "harmony", "multilingual-thinking", "prompt-completion", "alpaca", "sharegpt",
    "llama-factory", "apigen-mt", "hermes", "xlam", "glaive", "openthoughts", "openr1", "openai-preference",
    "trl-preference",
]  # fmt: skip
"""Row formats; docs/formats.md describes them."""
RENAMED = {"train.tokens_per_pass": "train.tokens_per_micro_batch"}
"""Renamed settings: former name -> present name. Recipes and run folders may still have the former name."""

Effort = Literal["low", "medium", "high"]
"""Reasoning effort, in the terms of the system message."""

EFFORTS: tuple[Effort, ...] = get_args(Effort)

Channel = Literal["analysis", "commentary", "final"]
"""Channels of the assistant's messages: analysis (thoughts), commentary (calls and preambles), final (answers)."""

CHANNELS: tuple[Channel, ...] = get_args(Channel)

BuiltinTool = Literal["browser", "python"]
"""Built-in tools that gpt-oss was trained with."""

_Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What numpy and torch both take."""
HeaderOrder = Literal["channel-first", "recipient-first"]
"""Order of the parts of an assistant's header. `ossia.harmony.render` shows both."""

DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_KNOWLEDGE_CUTOFF = "2024-06"

PathList = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Files, folders or ids. A single one may be given without brackets."""


def _words(value: Any) -> Any:
    """Return the words of a text with commas, as a command line gives them."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def _is_number(annotation: Any) -> bool:
    """Whether a field takes numbers and no flag. `annotation`: as pydantic gives it."""
    parts = [part for part in get_args(annotation) if isinstance(part, type) or get_origin(part)]
    kinds = {annotation, *parts, *(inner for part in parts for inner in get_args(part)[:1])}
    return bool(kinds & {int, float}) and bool not in kinds


def _a_date(value: str) -> str:
    try:
        return datetime.date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError("a date has the form YYYY-MM-DD") from None


class Section(BaseModel):
    """A part of a recipe. An unknown key is an error, and values are validated."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, validate_assignment=True, frozen=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _a_flag_is_not_a_number(cls, values: Any) -> Any:
        """Refuse `steps: true`, which pydantic would read as 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and _is_number(field.annotation):
                raise ValueError(f"{name} is {str(value).lower()}, and a number is expected")
        return values


class ModelSection(Section):
    """The model to start from."""

    path: str = "openai/gpt-oss-20b"
    """A folder with a checkpoint in the published layout, or a hub id. Hub ids are looked up among fetched models."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype of the computation and of all weights that are not four-bit. `auto`: bfloat16 if the hardware multiplies it
    fast, else float32."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. `auto`: the first CUDA device, else the CPU."""


class DataSource(Section):
    """One part of a mixture of data sets."""

    path: str
    """A file (jsonl, json, csv, parquet), a folder, or a hub data set id."""

    format: Format | None = None
    """Row format of this part. Not set: data.format."""

    split: str | None = None
    """Split of a hub data set, such as train or train[:10%]. Not set: train."""

    columns: dict[str, str] = {}
    """Column of the rows -> key of the format, if the columns have other names. Has precedence over data.columns."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Largest number of usable conversations, taken from the start. Not set: all."""

    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Number of copies of each conversation. 2 takes all of them twice, 0.5 a random half (chosen by train.seed)."""


def _listed(value: object) -> object:
    return [value] if isinstance(value, (str, dict, DataSource)) else value


Mixture = Annotated[list[str | DataSource], BeforeValidator(_listed)]
"""Data sets, each a path or id, or an object with its own settings. A single one may be given without brackets."""


def _channel_weights(value: dict[str, float]) -> dict[str, float]:
    for channel, weight in value.items():
        if channel not in CHANNELS:
            raise ValueError(f"{channel!r} is not a channel: {', '.join(CHANNELS)}")
        if not 0 <= weight <= 100:
            raise ValueError(f"the weight of {channel} must lie between 0 and 100")
    return value


class DataSection(Section):
    """The conversations to train on, and their rendering."""

    train: Mixture = []
    """Files (jsonl, json, csv, parquet), folders, or hub data set ids. Paths are relative to the folder of the command.
    To mix data sets, give objects with `path` and `format`, `split`, `columns`, `limit` or `weight`."""

    validation: Mixture = []
    """The same for validation. Empty: a share of the training conversations is held back."""

    validation_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Share of the training conversations held back for validation if no validation files are given. 0: none."""

    format: Format = "auto"
    """Row format. `auto`: detected from the keys of each row, and shown in the report."""

    columns: dict[str, str] = {}
    """Column of the rows -> key of the format, if it cannot be detected: {question: prompt, reply: completion}."""

    turns: Literal["every", "last"] = "every"
    """Assistant turns to train on. `every`: each turn becomes an example. `last`: only the last turn does."""

    max_tokens: Annotated[int, Field(ge=32, le=131_072)] = 4096
    """Longest example in tokens. From a longer one, whole old turns are removed. If it is still too long, it is left
    out and reported."""

    effort: Effort = "medium"
    """Reasoning effort in the system message of rows without their own."""

    date: Annotated[str, AfterValidator(_a_date)] | None = None
    """Current date in the system message (YYYY-MM-DD). Not set: no such line, so data are the same every day."""

    identity: str = DEFAULT_IDENTITY
    """First line of the system message."""

    knowledge_cutoff: str | None = DEFAULT_KNOWLEDGE_CUTOFF
    """Knowledge cutoff in the system message. `null`: no such line."""

    builtin_tools: list[BuiltinTool] = []
    """Built-in tools announced in the system message of every row."""

    channel_weights: Annotated[dict[str, float], AfterValidator(_channel_weights)] = {}
    """Channel -> factor on the loss of its tokens, such as {analysis: 0.5}. Other channels have 1. 0 excludes a
    channel from the loss."""

    header_order: HeaderOrder = "channel-first"
    """Order of the assistant's headers, in targets and context. `channel-first`: the order that the model samples.
    `recipient-first`: the order of the openai-harmony library."""

    strict: bool = False
    """Stop at the first bad row. `false`: bad rows are reported and left out."""

    cache: bool = True
    """Keep compiled conversations in the cache folder, under the hash of their content, and reuse them."""


Sources = str | Path | DataSource | Iterable[str | Path | DataSource]
"""One or several data sets, as Python functions accept them."""


def sources_of(named: Sources) -> list[DataSource]:
    """Return the data sets as a list of `DataSource`."""
    listed = [named] if isinstance(named, (str, Path, DataSource)) else named
    return [source if isinstance(source, DataSource) else DataSource(path=str(source)) for source in listed]


LoraTarget = Literal["attention", "experts", "router", "embeddings", "head"]


def _attention_ranks(value: dict[str, int]) -> dict[str, int]:
    for name, rank in value.items():
        if name not in ("q_proj", "k_proj", "v_proj", "o_proj"):
            raise ValueError(f"{name!r} is not an attention projection: q_proj, k_proj, v_proj, o_proj")
        if not 1 <= rank <= 512:
            raise ValueError(f"the rank of {name} must lie between 1 and 512")
    return value


class LoraSection(Section):
    """The adapter to train (LoRA, Hu et al. 2021). The base weights never change."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """LoRA rank of the attention projections (q, k, v, o)."""

    attention_ranks: Annotated[dict[str, int], AfterValidator(_attention_ranks)] = {}
    """Attention projection -> its own rank, such as {q_proj: 32, o_proj: 32}. The scale stays alpha / rank."""

    expert_rank: Annotated[int, Field(ge=1, le=128)] = 8
    """LoRA rank of each expert's gate_up and down projection."""

    router_rank: Annotated[int, Field(ge=1, le=128)] = 8
    """LoRA rank of the routers, which choose the experts of a token."""

    vocabulary_rank: Annotated[int, Field(ge=1, le=512)] = 8
    """LoRA rank of the token embeddings and of the output head."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update of the attention projections is scaled by alpha / rank."""

    expert_alpha: Annotated[float, Field(gt=0)] = 16.0
    """The update of the experts is scaled by expert_alpha / expert_rank."""

    router_alpha: Annotated[float, Field(gt=0)] = 8.0
    """The update of the routers is scaled by router_alpha / router_rank. The default scale is low, because a small
    change already sends tokens to other experts."""

    vocabulary_alpha: Annotated[float, Field(gt=0)] = 8.0
    """The update of embeddings and head is scaled by vocabulary_alpha / vocabulary_rank."""

    targets: Annotated[list[LoraTarget], Field(min_length=1), BeforeValidator(_words)] = ["attention", "experts"]
    """Groups of matrices that get an adapter. All others stay frozen."""

    start_from: str | None = None
    """Folder of an adapter (PEFT layout) to continue from. Its targets, ranks and alphas replace those given here."""

    def ranks_and_alphas(self) -> dict[LoraTarget, tuple[int, float]]:
        """Return target -> (rank, alpha) for each target of the recipe, in a fixed order."""
        all_: dict[LoraTarget, tuple[int, float]] = {
            "attention": (self.rank, self.alpha),
            "experts": (self.expert_rank, self.expert_alpha),
            "router": (self.router_rank, self.router_alpha),
            "embeddings": (self.vocabulary_rank, self.vocabulary_alpha),
            "head": (self.vocabulary_rank, self.vocabulary_alpha),
        }
        return {target: pair for target, pair in all_.items() if target in self.targets}


def _as_word(value: Any) -> Any:
    """Return "on" or "off" for a boolean, because YAML reads a bare `on` or `off` as true or false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class TrainSection(Section):
    """The optimisation."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of optimiser steps. Not set: as many as `epochs` needs."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Number of times to train on all examples, if `steps` is not set."""

    examples_per_step: Annotated[int, Field(ge=1)] = 16
    """Training examples (assistant turns) per optimiser step, on all devices together."""

    sharding: Literal["none", "fsdp"] = "none"
    """Distribution of the model over several processes. `none`: each has the whole model (DDP). `fsdp`: each has a part
    of every layer, packed experts included, and gathers a layer when it is used (FSDP2; torch 2.12 or newer)."""

    tokens_per_micro_batch: Annotated[int, Field(ge=64)] = 8192
    """Largest number of tokens in a micro-batch, which goes through the model at once. A step has as many micro-batches
    as it needs."""

    share_prefixes: Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_word)] = "auto"
    """Compute common prefixes of a step's examples once: earlier turns, system messages, tool schemas. Loss and
    gradients stay the same. `auto`: if sharing is exact and saves tokens. The reason for the choice is reported."""

    loss_weighting: Literal["token", "turn", "conversation"] = "token"
    """Unit of equal weight in the loss: supervised tokens, assistant turns or conversations. The tokens of a turn or
    conversation share its weight. The validation loss always weights tokens equally."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""

    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    """AdamW with its two moments in float32, or in 8 bits (bitsandbytes, the extra `8bit`). `paged`: the moments move
    to main memory if the GPU's memory is full."""

    balance_loss: Annotated[float, Field(ge=0, le=1)] | None = None
    """Coefficient of the load-balancing loss, which spreads tokens over the experts. Requires router among
    lora.targets. Not set: 0.001 if the router is trained, else none. 0: none."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up. `cosine`: falls to a tenth of the peak. `linear`: falls to zero. `constant`:
    stays at the peak."""

    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the steps in which the learning rate rises from zero."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay on the adapter's matrices."""

    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest global norm of the gradients. Larger gradients are scaled down to it."""

    seed: _Seed = 42
    """Seeds the adapter, the data order and the sampling."""

    deterministic: bool = False
    """Refuse algorithms with results that may differ from run to run. A resumed run then repeats an uninterrupted
    one."""

    recompute: bool = True
    """Keep only the inputs of each layer's halves, and compute attention and the experts' first projection again in the
    backward pass. `false`: faster, with several times the memory."""

    offload: bool = False
    """Keep the inputs of `recompute` in main memory and not on the GPU. This allows longer contexts and is a little
    slower."""

    evaluate_every: Annotated[int, Field(ge=1)] = 50
    """Steps between validation losses. The last step is always evaluated."""

    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    """Steps between checkpoints. The last step is always saved."""

    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Number of the newest checkpoints to keep on disk. The best one is kept in addition."""

    spare_folder: str | None = None
    """Folder on another disk. If the run's disk is full, the newest state is saved there and training ends. Not set:
    training waits until there is room."""

    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many consecutive validation losses without a new best. Not set: never."""

    samples: Annotated[int, Field(ge=0)] = 1
    """Number of validation prompts that the model answers after each evaluation. The answers are written to the events
    and show how the model changes."""

    sample_tokens: Annotated[int, Field(ge=1)] = 160
    """Longest sample in tokens."""

    sample_temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature of the samples. 0: always the most likely token."""

    report_to: Annotated[list[Literal["tensorboard", "wandb", "trackio"]], BeforeValidator(_words)] = []
    """Experiment trackers that get the run's metrics in addition to the run folder."""

    def total_steps(self, examples: int) -> int:
        """Return the number of optimiser steps on this number of examples."""
        if self.steps is not None:
            return self.steps
        # The product is rounded first, so that 1.1 times 10 is 11 and not slightly more.
        return math.ceil(round(math.ceil(examples / self.examples_per_step) * self.epochs, 6))


class SamplingSection(Section):
    """The generation of answers."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest completion in tokens, thoughts included."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature. 0: always the most likely token."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample only among this many most likely tokens. 0: no limit."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample only among the most likely tokens that together have this probability."""

    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample only among tokens with at least this share of the most likely token's probability."""


class EvalSection(SamplingSection):
    """The comparison of the tuned model with its base by `ossia eval`."""

    data: PathList = []
    """Held-out files, in the same formats as the training data."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Largest number of questions. Not set: all."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Number of questions to answer together."""

    seed: _Seed = 0
    """Chooses the questions where there is a limit, and seeds the sampling when the temperature is not 0."""


class ChatSection(SamplingSection):
    """The answers of `ossia chat`."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longest turn in tokens, thoughts included."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature. 0: always the most likely token. OpenAI recommends 1 for gpt-oss."""

    seed: _Seed | None = None
    """Repeats a conversation. Not set: a new seed each time."""


class Recipe(Section):
    """All settings of one fine-tune."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    """Short name of letters, digits, dots and dashes. It becomes a part of the run folder's name."""

    description: str = ""
    """Purpose of the recipe, in one line."""

    hardware: str = ""
    """Requirements, in one line: memory, time, and the machine of the measurement."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    chat: ChatSection = ChatSection()

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, values: Any) -> Any:
        """Return the values with the present names of renamed settings."""
        for old, new in RENAMED.items():
            (section, former), name = old.split("."), new.partition(".")[2]
            given = values.get(section) if isinstance(values, dict) else None
            if not isinstance(given, dict) or former not in given:
                continue
            if given.get(name, given[former]) != given[former]:
                raise ValueError(f"{new} is {given[name]} and {old}, its former name, is {given[former]}: keep one")
            kept = {key: value for key, value in given.items() if key != former}
            values = {**values, section: kept | {name: given[former]}}
        return values

    @model_validator(mode="after")
    def _offload_needs_recompute(self) -> Recipe:
        if self.train.offload and not self.train.recompute:
            raise ValueError("train.offload moves the inputs that train.recompute keeps, so it needs recompute")
        return self

    @model_validator(mode="after")
    def _a_micro_batch_holds_an_example(self) -> Recipe:
        if self.train.tokens_per_micro_batch < self.data.max_tokens:
            raise ValueError(
                f"train.tokens_per_micro_batch ({self.train.tokens_per_micro_batch}) must be at least data.max_tokens "
                f"({self.data.max_tokens}): one example has to fit into one micro-batch. Set both"
            )
        return self
