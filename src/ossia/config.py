"""The one schema of a recipe: what to tune, on what, how, and how to measure it.

A field's docstring is its only documentation: `ossia recipes schema`, docs/config.md and error messages come from it.
Reading and merging of files lives in `ossia.recipes`; this module knows nothing about files.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Format = Literal[
    "auto", "openai", "openai-responses", "harmony", "multilingual-thinking", "prompt-completion", "alpaca", "sharegpt",
    "llama-factory", "apigen-mt", "hermes", "xlam", "glaive", "openthoughts", "openr1", "openai-preference",
    "trl-preference",
]  # fmt: skip
"""Row formats; docs/formats.md describes them."""
RENAMED = {"train.tokens_per_pass": "train.tokens_per_micro_batch"}
"""Settings that had another name: the old one, which recipes and run folders may still have -> the present one."""

Effort = Literal["low", "medium", "high"]
"""Reasoning effort, in the words of the system message."""

EFFORTS: tuple[Effort, ...] = get_args(Effort)

Channel = Literal["analysis", "commentary", "final"]
"""Channels of the assistant's messages: thoughts, calls and preambles, answers."""

CHANNELS: tuple[Channel, ...] = get_args(Channel)

BuiltinTool = Literal["browser", "python"]
"""Built-in tools that gpt-oss was trained with."""

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What numpy and torch both take."""
HeaderOrder = Literal["channel-first", "recipient-first"]
"""Order of the parts of an assistant's header; `ossia.harmony.render` shows both."""

DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_KNOWLEDGE_CUTOFF = "2024-06"

PathList = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Files, folders or ids; a single one may be given without brackets."""


def _a_date(value: str) -> str:
    try:
        return datetime.date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError("a date has the form YYYY-MM-DD") from None


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors, values are checked when assigned."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_assignment=True, frozen=True)


class ModelSection(Section):
    """Which weights to start from."""

    path: str = "openai/gpt-oss-20b"
    """A folder with a checkpoint in the published layout, or a hub id. Hub ids are looked up among fetched models."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute type of what is not four-bit. auto: bfloat16 where the hardware multiplies it fast, else float32."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: the first CUDA device, else the CPU."""


class DataSource(Section):
    """One part of a mixture of data sets."""

    path: str
    """A file (jsonl, json, csv, parquet), a folder, or a hub data set id."""

    format: Format | None = None
    """Row format of this part. Not set: data.format."""

    split: str | None = None
    """Split of a hub data set, such as train or train[:10%]. Not set: train."""

    columns: dict[str, str] = {}
    """Column of the rows -> key of the format, where they have names of their own. Goes on top of data.columns."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """At most so many usable conversations, from the start. Not set: all."""

    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often each conversation counts: 2 takes all of them twice, 0.5 a random half (by train.seed)."""


def _listed(value: object) -> object:
    return [value] if isinstance(value, (str, dict, DataSource)) else value


Mixture = Annotated[list[str | DataSource], BeforeValidator(_listed)]
"""Data sets, each a path or id, or an object with settings of its own; a single one may stand without brackets."""


def _channel_weights(value: dict[str, float]) -> dict[str, float]:
    for channel, weight in value.items():
        if channel not in CHANNELS:
            raise ValueError(f"{channel!r} is not a channel: {', '.join(CHANNELS)}")
        if not 0 <= weight <= 100:
            raise ValueError(f"the weight of {channel} must lie between 0 and 100")
    return value


class DataSection(Section):
    """Which conversations to train on and how to render them."""

    train: Mixture = []
    """Files (jsonl, json, csv, parquet), folders, or hub data set ids, relative to the folder of the command; or
    objects with `path` and settings of their own (`format`, `split`, `columns`, `limit`, `weight`), to mix several."""

    validation: Mixture = []
    """The same for validation. Empty: a share of the training conversations is held back."""

    validation_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Share of the training conversations held back for validation when no validation files are given. 0: none."""

    format: Format = "auto"
    """Row format. auto: recognised from the keys of each row, and named in the report."""

    columns: dict[str, str] = {}
    """Column of the rows -> key of the format, where detection cannot know: {question: prompt, reply: completion}."""

    turns: Literal["every", "last"] = "every"
    """Which assistant turns are trained: every turn becomes an example of its own, or only the last one does."""

    max_tokens: Annotated[int, Field(ge=32, le=131_072)] = 4096
    """Longest example in tokens. Longer ones lose whole old turns; what still does not fit is left out and reported."""

    effort: Effort = "medium"
    """Reasoning effort written into the system message of rows that do not carry their own."""

    date: Annotated[str, AfterValidator(_a_date)] | None = None
    """Current date in the system message (YYYY-MM-DD). Not set: no such line, so data are the same every day."""

    identity: str = DEFAULT_IDENTITY
    """First line of the system message."""

    knowledge_cutoff: str | None = DEFAULT_KNOWLEDGE_CUTOFF
    """Knowledge cutoff in the system message. null: no such line."""

    builtin_tools: list[BuiltinTool] = []
    """Built-in tools announced in the system message of every row."""

    channel_weights: Annotated[dict[str, float], AfterValidator(_channel_weights)] = {}
    """Channel -> factor on the loss of its tokens, such as {analysis: 0.5}. 1 for those not named; 0 leaves one out."""

    header_order: HeaderOrder = "channel-first"
    """Order of the assistant's headers, in targets and context alike. channel-first is what the model samples;
    recipient-first is the order of the openai-harmony library."""

    strict: bool = False
    """Stop at the first bad row. Off: bad rows are reported and left out."""

    cache: bool = True
    """Keep compiled conversations in the cache folder, by the hash of their content, and use them the next time."""


Sources = str | Path | DataSource | Iterable[str | Path | DataSource]
"""What names data sets in Python: one or several."""


def sources_of(named: Sources) -> list[DataSource]:
    """The data sets that are named, all in the long form."""
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
    """The adapter that is trained (LoRA, Hu et al. 2021). The base weights never change."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """LoRA rank of the attention projections (q, k, v, o)."""

    attention_ranks: Annotated[dict[str, int], AfterValidator(_attention_ranks)] = {}
    """Attention projection -> rank of its own, such as {q_proj: 32, o_proj: 32}. The scale stays alpha / rank."""

    expert_rank: Annotated[int, Field(ge=1, le=128)] = 8
    """LoRA rank of each expert's gate_up and down projection."""

    router_rank: Annotated[int, Field(ge=1, le=128)] = 8
    """LoRA rank of the routers, which choose the experts of a token."""

    vocabulary_rank: Annotated[int, Field(ge=1, le=512)] = 8
    """LoRA rank of the token embeddings and of the output head."""

    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""

    expert_alpha: Annotated[float, Field(gt=0)] = 16.0
    """The same for the experts: scaled by expert_alpha / expert_rank."""

    router_alpha: Annotated[float, Field(gt=0)] = 8.0
    """The same for the routers. Scaled less than the others: a small change already sends tokens to other experts."""

    vocabulary_alpha: Annotated[float, Field(gt=0)] = 8.0
    """The same for embeddings and head."""

    targets: Annotated[list[LoraTarget], Field(min_length=1)] = ["attention", "experts"]
    """What gets an adapter: any of attention, experts, router, embeddings, head. The rest stays frozen."""

    start_from: str | None = None
    """Folder of an adapter (PEFT layout) to continue from; its targets, ranks and alphas replace those given here."""

    def ranks_and_alphas(self) -> dict[LoraTarget, tuple[int, float]]:
        """Rank and alpha of each target, in a fixed order."""
        all_: dict[LoraTarget, tuple[int, float]] = {
            "attention": (self.rank, self.alpha),
            "experts": (self.expert_rank, self.expert_alpha),
            "router": (self.router_rank, self.router_alpha),
            "embeddings": (self.vocabulary_rank, self.vocabulary_alpha),
            "head": (self.vocabulary_rank, self.vocabulary_alpha),
        }
        return {target: pair for target, pair in all_.items() if target in self.targets}


def _as_word(value: Any) -> Any:
    """YAML reads a bare `on` or `off` as true or false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class TrainSection(Section):
    """How to optimise."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Number of optimiser steps. Not set: as many as `epochs` takes."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training examples when `steps` is not set."""

    examples_per_step: Annotated[int, Field(ge=1)] = 16
    """Training examples (assistant turns) that one optimiser step averages over, over all devices together."""

    sharding: Literal["none", "fsdp"] = "none"
    """With several processes. none: each holds the whole model (DDP). fsdp: each holds a part of every layer, the
    packed experts among them, and gathers a layer when it is used (FSDP2; torch 2.12 or newer)."""

    tokens_per_micro_batch: Annotated[int, Field(ge=64)] = 8192
    """Most tokens of a micro-batch, which is one forward and backward pass; a step has as many as it takes."""

    share_prefixes: Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_word)] = "auto"
    """Compute once what the examples of a step begin with in common: the turns of a conversation, system messages, tool
    schemas. Loss and gradients stay the same. auto: where that is exact and saves tokens; the reason is reported."""

    loss_weighting: Literal["token", "turn", "conversation"] = "token"
    """What counts the same in the loss: every supervised token, every assistant turn, or every conversation; the weight
    of a turn or conversation is shared by its tokens. The validation loss is always that of tokens."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""

    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    """AdamW with its two moments in float32, or in 8 bits (bitsandbytes, the extra `8bit`). paged: they may also move
    to main memory while the GPU's is full."""

    balance_loss: Annotated[float, Field(ge=0, le=1)] | None = None
    """Coefficient of the load-balancing loss that spreads tokens over the experts. Only with router among lora.targets;
    not set: 0.001 then, and none where the router is frozen. 0: none."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """The learning rate after the warm-up: down to a tenth of the peak (cosine), to zero (linear), or constant."""

    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the steps over which the learning rate rises from zero."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay on the adapter's matrices."""

    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to at most this global norm."""

    seed: Seed = 42
    """Seeds the adapter, the data order and the sampling."""

    deterministic: bool = False
    """Refuse algorithms whose result may differ from run to run, so that a resumed run repeats an uninterrupted one."""

    recompute: bool = True
    """Keep only the inputs of each layer's halves and compute attention and the experts' first projection again in the
    backward pass. Off: faster, several times the memory."""

    offload: bool = False
    """Keep those inputs in main memory until they are needed, not on the GPU: longer contexts, a little slower."""

    evaluate_every: Annotated[int, Field(ge=1)] = 50
    """Steps between validation losses. The last step is always evaluated."""

    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    """Steps between checkpoints. The last step is always saved."""

    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many of the newest checkpoints stay on disk; the best one stays besides them."""

    spare_folder: str | None = None
    """Folder on another disk. If the run's disk is full, the newest state is saved there and training ends. Not set:
    training waits until there is room."""

    early_stopping: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many validation losses in a row without a new best. Not set: never."""

    samples: Annotated[int, Field(ge=0)] = 1
    """Validation prompts answered after each evaluation and written to the events, to watch the model change."""

    sample_tokens: Annotated[int, Field(ge=1)] = 160
    """Longest sample in tokens."""

    sample_temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature of the samples; 0 takes the most likely token."""

    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Experiment trackers that mirror the run's metrics. The run folder has them anyway."""

    def total_steps(self, examples: int) -> int:
        """Return the number of optimiser steps on so many examples."""
        if self.steps is not None:
            return self.steps
        # Rounded first, so that 1.1 times 10 is 11 and not a hair more.
        return math.ceil(round(math.ceil(examples / self.examples_per_step) * self.epochs, 6))


class SamplingSection(Section):
    """How an answer is generated."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest completion in tokens, thoughts included."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature; 0 takes the most likely token."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among this many most likely tokens. 0: no limit."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample among the most likely tokens that together hold this probability."""

    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sample among tokens with at least this share of the most likely token's probability."""


class EvalSection(SamplingSection):
    """How `ossia eval` measures the tuned model against its base."""

    data: PathList = []
    """Held-out files, in the same formats as the training data."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Most questions to ask. Not set: all."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Questions answered together."""

    seed: Seed = 0
    """Chooses the questions where there is a limit, and seeds the sampling when the temperature is not 0."""


class ChatSection(SamplingSection):
    """How `ossia chat` answers."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longest turn in tokens, thoughts included."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature; 0 takes the most likely token. OpenAI recommends 1 for gpt-oss."""

    seed: Seed | None = None
    """Repeats a conversation. Not set: a new seed each time."""


class Recipe(Section):
    """Everything about one fine-tune."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "run"
    """Short name: letters, digits, dots, dashes. Becomes part of the run folder's name."""

    description: str = ""
    """What this recipe is for, in one line."""

    hardware: str = ""
    """What it needs, in one line: memory, time, where measured."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    chat: ChatSection = ChatSection()

    @model_validator(mode="before")
    @classmethod
    def _present_names(cls, values: Any) -> Any:
        """Give settings under an old name their present one."""
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
            raise ValueError("train.offload sends what train.recompute keeps to main memory, so it needs recompute")
        return self

    @model_validator(mode="after")
    def _a_micro_batch_holds_an_example(self) -> Recipe:
        if self.train.tokens_per_micro_batch < self.data.max_tokens:
            raise ValueError(
                f"train.tokens_per_micro_batch ({self.train.tokens_per_micro_batch}) must be at least data.max_tokens "
                f"({self.data.max_tokens}): one example has to fit into one micro-batch"
            )
        return self
