"""PEFT's layout on disk: which weights of a model an adapter can change, and where their updates lie in its file.

What is on disk is always what stock PEFT writes for `target_modules` and `target_parameters`, so that it loads on stock
transformers without Ossia (PEFT 0.21, `Linear`, `Embedding` and `ParamWrapper` in peft/tuners/lora/layer.py):

* `lora_A` of a linear module or a 2-D parameter is [R, in], `lora_B` is [out, R];
* `lora_embedding_A` of the embeddings is [R, vocabulary], `lora_embedding_B` is [H, R]; they update [vocabulary, H] by
  the transpose of B A;
* `lora_A` of an experts' parameter is [E * R, in], experts first; `lora_B` is [out, R * E], ranks first;
* the keys of experts do not name the parameter. Two parameters are nested wrappers, in the order of the module:
  `experts.base_layer.lora_A` belongs to gate_up_proj, `experts.lora_A` to down_proj, or to the only one.

PEFT takes an experts' parameter's axes as (experts, in, out) when its module says `is_transposed`, and as (experts,
out, in) when it does not, as with transformers before 5. Adapters of both kinds exist. For gpt-oss's square down_proj
their shapes are equal while the updates are transposes of each other, so the whole adapter is read under either
convention and the one under which every shape fits is taken; if both fit, reading is refused.

Everything here is read from headers, and no torch is imported. Shapes: E experts, R LoRA rank, H hidden size.
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
"""What an update can be of, and what its tensors' names contain."""
_ADAPTABLE = ("embedding", "attention", "router", "experts", "head")
#: Stock PEFT writes embeddings and head beside a LoRA on them.
_COPY = re.compile(r"base_model\.model\.(model\.embed_tokens|lm_head)(?:\.base_layer)?\.weight")


@dataclass(frozen=True)
class AdaptableWeight:
    """A weight that LoRA can change: a matrix [outputs, inputs], or one of every expert. `name` is the checkpoint's."""

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
        """The name that targets and patterns of a configuration are matched with."""
        return self.name if self.is_parameter else self.name.removesuffix(".weight")

    def parameters(self, rank: int) -> int:
        """Parameters of an update: rank * (inputs + outputs) of each matrix (Hu et al. 2021, section 4)."""
        return rank * (self.inputs + self.outputs) * (self.experts or 1)

    def stored_shapes(self, rank: int, swapped: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of A and B on disk. `swapped`: A stands on the outputs and B on the inputs."""
        first, second = (self.outputs, self.inputs) if swapped else (self.inputs, self.outputs)
        rows = rank * (self.experts or 1)
        return (rows, first), (second, rows)


def adaptable_weights(shape: Shape) -> Iterator[AdaptableWeight]:
    """Every weight of a model that LoRA can change, in the order of the forward pass."""
    for spec in tensors(shape, mxfp4=False):
        if spec.kind == "experts":
            experts, inputs, outputs = spec.shape
            yield AdaptableWeight(spec.name, outputs, inputs, experts)
        elif spec.kind in _ADAPTABLE and len(spec.shape) == 2:
            yield AdaptableWeight(spec.name, *spec.shape)


def adapted_weights(config: AdapterConfig, shape: Shape) -> list[AdaptableWeight]:
    """The weights of a model that an adapter of this configuration changes."""
    return [
        weight
        for weight in adaptable_weights(shape)
        if (config.targets_parameter if weight.is_parameter else config.targets_module)(weight.key)
    ]


def stored_keys(names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Name of a weight -> keys of its A and B in the file of an adapter that changes the weights of these names."""
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
    """The update of one weight as it lies in the file: the keys of A and B, and what they mean.

    swapped: A stands on the outputs and B on the inputs, as for embeddings and one convention of experts.
    """

    weight: AdaptableWeight
    a: str
    b: str
    rank: int
    scale: float
    swapped: bool


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter on disk, known by its configuration and the header of its file.

    copies: key in the file -> name in the checkpoint of embeddings and head, which must be those of the base.
    """

    config: AdapterConfig
    updates: tuple[StoredUpdate, ...]
    copies: dict[str, str]

    @property
    def parameters(self) -> int:
        """What training would change: all but the copies."""
        return sum(update.weight.parameters(update.rank) for update in self.updates)


def read_layout(folder: Path, shape: Shape) -> StoredAdapter:
    """Read where everything is in an adapter for a model of this shape. Every tensor of the file has one meaning.

    Raises:
        UserError: not a LoRA adapter in PEFT's layout, or one that Ossia does not load (`read_config`); tensors that
            are missing, left over or of another model's shape; experts whose convention the shapes do not tell.
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
    """Whether A stands on the outputs, for each weight. stored: name -> shapes of A and B.

    Raises UserError when shapes do not fit, or when those of the experts fit either way.
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
            "the shapes do not tell how the experts' update is to be read",
            where=str(file),
            why=f"it changes only {' and '.join(experts)}, where PEFT's two conventions differ by a transpose",
            do="train both projections of the experts: their shapes together tell the convention",
        )
    return [True in of_experts if weight.experts else weight.name == EMBEDDINGS for weight in weights]


def lora_parameters(shape: Shape, lora: LoraSection) -> int:
    """Trainable parameters of a recipe's adapter: of a new one, or of the one in `start_from`.

    Raises:
        UserError: the adapter in the folder of `start_from` is not one that training loads.
    """
    if lora.start_from is not None:
        return read_layout(Path(lora.start_from), shape).parameters
    config = AdapterConfig.of(lora)
    return sum(weight.parameters(config.rank_of(weight.key)) for weight in adapted_weights(config, shape))


def lora_targets(lora: LoraSection) -> list[LoraTarget]:
    """What training will change: the recipe's targets, or those of the adapter in `start_from`.

    Raises:
        UserError: there is no readable adapter in that folder.
    """
    if lora.start_from is None:
        return lora.targets
    folder = Path(lora.start_from)
    read_config(folder)
    names = [name for name in _header(folder / WEIGHTS_FILE) if ".lora_" in name]
    return [target for target, place in PARTS.items() if any(place in name for name in names)]


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file."""
    try:
        with safe_open(file, framework="np") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter's weights cannot be read ({error})", where=str(file)) from None


def _check_modules(config: AdapterConfig, shape: Shape, where: str) -> None:
    """Refuse targets that choose modules which are not adapted as modules.

    Names that choose no module of gpt-oss do nothing, in PEFT as here: recipes for other models list `gate_proj`.
    """
    parts = (spec.name.split(".")[:-1] for spec in tensors(shape, mxfp4=False))
    modules = {module for names in parts for module in itertools.accumulate(names, "{}.{}".format)}
    adaptable = {weight.key for weight in adaptable_weights(shape) if not weight.is_parameter}
    if strange := [module for module in modules - adaptable if config.targets_module(module)]:
        raise not_adaptable(strange, where)


def _misfit(what: str, file: Path, config: AdapterConfig) -> UserError:
    why = f"the adapter was made for another base model, or {CONFIG_FILE} is another adapter's"
    return UserError(what, where=str(file), why=why, do=config.remedy)
