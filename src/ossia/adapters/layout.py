"""PEFT's layout on disk: the weights of a model that an adapter can change, and the place of their updates in its file.

The file is always as stock PEFT writes it for `target_modules` and `target_parameters`. It therefore loads on stock
transformers without Ossia. The source is PEFT 0.21: `Linear`, `Embedding` and `ParamWrapper` in
peft/tuners/lora/layer.py.

* `lora_A` of a linear module or a 2-D parameter is [R, in], `lora_B` is [out, R];
* `lora_embedding_A` of the embeddings is [R, vocabulary], `lora_embedding_B` is [H, R]; they update [vocabulary, H] by
  the transpose of B A;
* `lora_A` of an experts' parameter is [E * R, in], experts first; `lora_B` is [out, R * E], ranks first;
* the keys of experts do not contain the parameter's name. Two parameters are nested wrappers, in the order of the
  module: `experts.base_layer.lora_A` belongs to gate_up_proj, `experts.lora_A` to down_proj, or to the only parameter.

PEFT has two conventions for the axes of an experts' parameter. They are (experts, in, out) if the module has
`is_transposed`, and (experts, out, in) if it does not, as with transformers before 5. Adapters of both kinds exist. For
gpt-oss's square down_proj the shapes are equal under both, while the updates are transposes of each other. The
convention is therefore chosen for the whole adapter, by the shapes of all its tensors. If both fit, the adapter is
refused.

This module reads only headers, and does not import torch. Shapes: E experts, R LoRA rank, H hidden size.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, not_adaptable, read_config
from ossia.checkpoint.layout import Shape, tensors
from ossia.config import LoraSection, LoraTarget
from ossia.errors import UserError

EMBEDDINGS = "model.embed_tokens.weight"

PARTS: dict[LoraTarget, str] = {
    "attention": ".self_attn.", "experts": ".mlp.experts.", "router": ".mlp.router.", "embeddings": "embed_tokens",
    "head": "lm_head",
}  # fmt: skip
"""The targets of an update, each with a part of its tensors' names."""
_ADAPTABLE = ("embedding", "attention", "router", "experts", "head")
#: Copies of the embeddings and the head, which stock PEFT writes beside a LoRA on them.
_COPY = re.compile(r"base_model\.model\.(model\.embed_tokens|lm_head)(?:\.base_layer)?\.weight")


@dataclass(frozen=True)
class AdaptableWeight:
    """A weight that LoRA can change: a matrix [outputs, inputs], or one in every expert. `name` is the checkpoint's."""

    name: str
    outputs: int
    inputs: int
    experts: int | None = None

    @property
    def is_parameter(self) -> bool:
        """Whether PEFT adapts it as a parameter and not as a module."""
        return ".mlp." in self.name

    @property
    def key(self) -> str:
        """The name that is compared with the targets and patterns of a configuration."""
        return self.name if self.is_parameter else self.name.removesuffix(".weight")

    def parameters(self, rank: int) -> int:
        """Return the parameters of an update: rank * (inputs + outputs) per matrix (Hu et al. 2021, section 4)."""
        return rank * (self.inputs + self.outputs) * (self.experts or 1)

    def stored_shapes(self, rank: int, swapped: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of A and B on disk. `swapped`: A is on the outputs and B on the inputs."""
        first, second = (self.outputs, self.inputs) if swapped else (self.inputs, self.outputs)
        rows = rank * (self.experts or 1)
        return (rows, first), (second, rows)


def adaptable_weights(shape: Shape) -> Iterator[AdaptableWeight]:
    """Yield every weight of a model that LoRA can change, in the order of the forward pass."""
    for spec in tensors(shape, mxfp4=False):
        if spec.kind == "experts":
            experts, inputs, outputs = spec.shape
            yield AdaptableWeight(spec.name, outputs, inputs, experts)
        elif spec.kind in _ADAPTABLE and len(spec.shape) == 2:
            yield AdaptableWeight(spec.name, *spec.shape)


def adapted_weights(config: AdapterConfig, shape: Shape) -> list[AdaptableWeight]:
    """Return the weights of a model that an adapter of this configuration changes."""
    return [
        weight
        for weight in adaptable_weights(shape)
        if (config.targets_parameter if weight.is_parameter else config.targets_module)(weight.key)
    ]


def stored_keys(names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return each name of a weight with the keys of its A and B in the file of an adapter that changes all of them."""
    keys = {}
    for name in names:
        module, _, parameter = name.rpartition(".")
        if parameter == "gate_up_proj" and f"{module}.down_proj" in names:
            module += ".base_layer"
        side, end = ("lora_embedding_", "") if name == EMBEDDINGS else ("lora_", ".weight")
        keys[name] = f"base_model.model.{module}.{side}A{end}", f"base_model.model.{module}.{side}B{end}"
    return keys


@dataclass(frozen=True)
class StoredUpdate:
    """The update of one weight as stored in the file: the keys of A and B, and their interpretation.

    Attributes:
        a, b: the keys of A and B.
        swapped: A is on the outputs and B on the inputs, as for embeddings and one convention of experts.
    """

    weight: AdaptableWeight
    a: str
    b: str
    rank: int
    scale: float
    swapped: bool


@dataclass(frozen=True)
class StoredAdapter:
    """The contents of an adapter on disk, from its configuration and the header of its file.

    Attributes:
        copies: key in the file -> name in the checkpoint, for embeddings and head. They must equal those of the base.
    """

    config: AdapterConfig
    updates: tuple[StoredUpdate, ...]
    copies: dict[str, str]

    @property
    def parameters(self) -> int:
        """Number of parameters that training would change: all but the copies."""
        return sum(update.weight.parameters(update.rank) for update in self.updates)


def read_layout(folder: Path, shape: Shape) -> StoredAdapter:
    """Return the contents of an adapter for a model of this shape. Every tensor of the file has one meaning.

    Raises:
        UserError: not a LoRA adapter in PEFT's layout, or one that Ossia does not load (`read_config`). Also if tensors
            are missing, left over or of another model's shape, or if shapes do not determine the experts' convention.
    """
    config, file = read_config(folder), folder / WEIGHTS_FILE
    _check_modules(config, shape, str(folder / CONFIG_FILE))
    header, weights = _header(file), adapted_weights(config, shape)
    keys = stored_keys([weight.name for weight in weights])
    copies = {key: f"{match[1]}.weight" for key in header if (match := _COPY.fullmatch(key))}
    wanted = [key for pair in keys.values() for key in pair]
    if missing := [key for key in wanted if key not in header]:
        raise _misfit(f"the adapter has no tensor {missing[0]}", file, config)
    if left := sorted(header.keys() - {*wanted, *copies}):
        raise _misfit(f"the adapter has tensors that {CONFIG_FILE} does not name: {', '.join(left[:3])}", file, config)
    if not weights:
        raise UserError("the adapter changes nothing", where=str(file))
    swapped = _swapped(weights, {name: tuple(header[key] for key in pair) for name, pair in keys.items()}, file, config)
    updates = (
        StoredUpdate(weight, *keys[weight.name], config.rank_of(weight.key), config.scale_of(weight.key), swaps)
        for weight, swaps in zip(weights, swapped, strict=True)
    )
    return StoredAdapter(config, tuple(updates), copies)


def _swapped(
    weights: list[AdaptableWeight], stored: Mapping[str, tuple[tuple[int, ...], ...]], file: Path, config: AdapterConfig
) -> list[bool]:
    """Return for each weight whether A is on the outputs. stored: name -> shapes of A and B.

    Raises UserError if shapes do not fit, or if those of the experts fit both conventions.
    """
    of_experts = {False, True}
    for weight in weights:
        rank, known = config.rank_of(weight.key), of_experts if weight.experts else {weight.name == EMBEDDINGS}
        fitting = {swapped for swapped in known if stored[weight.name] == weight.stored_shapes(rank, swapped)}
        if not fitting:
            a, b = map(list, stored[weight.name])
            each = f" in each of {weight.experts} experts" if weight.experts else ""
            wants = f"rank {rank} and [{weight.outputs}, {weight.inputs}] (outputs, inputs){each}"
            raise _misfit(f"{weight.key} has lora_A {a} and lora_B {b}, which do not fit {wants}", file, config)
        of_experts = fitting if weight.experts else of_experts
    experts = dict.fromkeys(weight.name.rpartition(".")[2] for weight in weights if weight.experts)
    if experts and len(of_experts) > 1:
        raise UserError(
            "the shapes do not determine how to read the experts' update",
            where=str(file),
            why=f"it changes only {' and '.join(experts)}, where PEFT's two conventions differ by a transpose",
            do="train both projections of the experts: their shapes together determine the convention",
        )
    return [True in of_experts if weight.experts else weight.name == EMBEDDINGS for weight in weights]


def lora_parameters(shape: Shape, lora: LoraSection) -> int:
    """Return the number of trainable parameters of a recipe's adapter: a new one, or the one in `start_from`.

    Raises:
        UserError: training does not load the adapter in the folder of `start_from`.
    """
    if lora.start_from is not None:
        return read_layout(Path(lora.start_from), shape).parameters
    config = AdapterConfig.of(lora)
    return sum(weight.parameters(config.rank_of(weight.key)) for weight in adapted_weights(config, shape))


def lora_targets(lora: LoraSection) -> list[LoraTarget]:
    """Return the targets that training changes: the recipe's, or those of the adapter in `start_from`.

    Raises:
        UserError: the adapter in that folder cannot be read.
    """
    if lora.start_from is None:
        return lora.targets
    folder = Path(lora.start_from)
    read_config(folder)
    names = [name for name in _header(folder / WEIGHTS_FILE) if ".lora_" in name]
    return [target for target, place in PARTS.items() if any(place in name for name in names)]


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a safetensors file, by name."""
    try:
        with safe_open(file, framework="np") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter's weights cannot be read ({error})", where=str(file)) from None


def _check_modules(config: AdapterConfig, shape: Shape, where: str) -> None:
    """Raise UserError for targets that select a module which cannot be adapted as a module.

    Names that select no module of gpt-oss have no effect, as in PEFT. Recipes for other models list `gate_proj`.
    """
    parts = (spec.name.split(".")[:-1] for spec in tensors(shape, mxfp4=False))
    modules = {module for names in parts for module in itertools.accumulate(names, "{}.{}".format)}
    adaptable = {weight.key for weight in adaptable_weights(shape) if not weight.is_parameter}
    if strange := [module for module in modules - adaptable if config.targets_module(module)]:
        raise not_adaptable(strange, where)


def _misfit(what: str, file: Path, config: AdapterConfig) -> UserError:
    why = f"the adapter was made for another base model, or {CONFIG_FILE} is another adapter's"
    return UserError(what, where=str(file), why=why, do=config.remedy)
