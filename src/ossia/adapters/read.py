"""A LoRA adapter in PEFT's layout, read as one update per tensor of the checkpoint.

On disk (PEFT 0.21, `Linear` and `ParamWrapper` in peft/tuners/lora/layer.py):

* a linear module, and the router, has `lora_A` [R, in] and `lora_B` [out, R];
* the embeddings have `lora_embedding_A` [R, vocabulary] and `lora_embedding_B` [H, R], and update [vocabulary, H] by
  the transpose of B A;
* the experts have `lora_A` [E * R, in], experts first, and `lora_B` [out, R * E], ranks first. The keys do not name the
  parameter: `experts.base_layer.lora_A` belongs to the first one targeted, `experts.lora_A` to the second.

PEFT takes an expert parameter's axes as (experts, in, out) when its module says `is_transposed`, and as (experts, out,
in) when it does not, as with transformers before 5. Adapters of both kinds exist. For gpt-oss's square down_proj their
shapes are equal while the updates are transposes of each other, so the whole adapter is read under either convention
and the one under which every shape fits is taken; if both fit, reading is refused.

Shapes: E experts, R LoRA rank, I input and O output size, H hidden, F intermediate.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.checkpoint.layout import Shape, expert_matrices, tensors
from ossia.checkpoint.reader import CheckpointReader
from ossia.errors import UserError

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])(?:\.default)?\.weight|embedding_([AB])(?:\.default)?)")
#: Stock PEFT writes embeddings and head beside a LoRA on them.
_COPY = re.compile(r"base_model\.model\.(model\.embed_tokens|lm_head)(?:\.base_layer)?\.weight")
_EXPERTS = re.compile(r"(model\.layers\.\d+\.mlp\.experts)(\.base_layer)?")
#: These start by taking something out of the base weights, so the update alone does not describe the tuned model.
_INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: Settings that make the update something else than scale * B A.
_REFUSED = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication",
    "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config",
)  # fmt: skip

Pair = tuple[Tensor, Tensor]
"""lora_A and lora_B."""
Places = dict[str, Pair]
"""An experts module's updates: ".base_layer" and "", or only "" when one parameter was targeted."""


@dataclass(frozen=True)
class Delta:
    """The update of one matrix, or of one matrix in every expert: scale * B A, outputs by inputs as the bytes lie.

    a: [R, I] or [E, R, I]; b: [O, R] or [E, O, R]; in the dtype of the file, mapped from it.
    """

    name: str
    a: Tensor
    b: Tensor
    scale: float

    def matrix(self, expert: int | None = None, device: str = "cpu", rows: slice = slice(None)) -> Tensor:
        """float32 [O, I], or some of its rows. Raises UserError when it is not finite."""
        a, b = (self.a, self.b[rows]) if expert is None else (self.a[expert], self.b[expert][rows])
        a, b = a.to(device, torch.float32), b.to(device, torch.float32)
        if not bool(torch.isfinite(a).all() & torch.isfinite(b).all()):
            raise UserError(
                f"the update of {self.name} holds NaN or infinite values",
                why="training diverged",
                do="export an earlier checkpoint (--checkpoint STEP)",
            )
        return (self.scale * b) @ a

    def is_zero(self, expert: int | None = None) -> bool:
        """Whether this update changes nothing, as that of an expert no training token was routed to."""
        a, b = (self.a, self.b) if expert is None else (self.a[expert], self.b[expert])
        return self.scale == 0 or not bool(a.any()) or not bool(b.any())


@dataclass(frozen=True)
class Adapter:
    """`deltas` maps the layout's float tensors (`...q_proj.weight`, `...experts.down_proj`) to their updates.

    `copies`: embeddings and head as the adapter's file has them, when it does; they must be those of the base.
    """

    folder: Path
    config: dict[str, Any]
    deltas: dict[str, Delta]
    copies: dict[str, Tensor] = field(default_factory=dict)

    @property
    def touches_experts(self) -> bool:
        return any(".mlp.experts." in name for name in self.deltas)

    def check_copies(self, base: CheckpointReader) -> None:
        """Raise UserError unless the embeddings and the head that the file holds, if any, are those of the base."""
        for name, copy in self.copies.items():
            original = base.get(name)
            if not torch.equal(copy.to(original.dtype), original):
                raise UserError(
                    f"the adapter holds a {name} that is not this base model's",
                    where=str(self.folder / WEIGHTS_FILE),
                    why="it was trained on another base model, or beside fully trained embeddings",
                    do="give the model it was trained on with --model",
                )


def read(folder: Path, shape: Shape) -> Adapter:
    """Read an adapter for a model of this shape. Every tensor of the file becomes part of exactly one update.

    Raises:
        UserError: not a LoRA adapter in PEFT's layout; made for another shape of model; a tensor that belongs to
            nothing that can be merged; or experts whose convention the shapes do not tell.
    """
    config = _read_config(folder)
    experts: dict[str, Places] = {}
    deltas: list[Delta] = []
    kinds = ("attention", "router", "embedding", "head")
    matrices = {spec.name: spec for spec in tensors(shape) if spec.kind in kinds and len(spec.shape) == 2}
    pairs, copies = _pairs(folder)
    for module, (a, b) in pairs.items():
        match, spec = _EXPERTS.fullmatch(module), matrices.get(f"{module}.weight")
        if match:
            experts.setdefault(match[1], {})[match[2] or ""] = (a, b)
        elif spec is None:
            raise UserError(
                f"the adapter changes {module}, which cannot be merged",
                where=str(folder / WEIGHTS_FILE),
                why="mergeable are the layers' attention projections, routers and experts, embed_tokens and lm_head",
            )
        elif (b.shape[0], a.shape[1]) != spec.shape or a.shape[0] != b.shape[1]:
            raise _misshapen(folder, module, a, b, f"{list(spec.shape)} (outputs, inputs)")
        else:
            key = spec.name if spec.kind == "router" else module  # a parameter, not a module
            deltas.append(Delta(spec.name, a, b, _scale(config, key, len(a), folder)))
    if experts:
        names, transposed = _reading(folder, config, experts, shape)
        deltas += [
            _expert_delta(f"{module}.{names[place]}", pair, transposed, shape.experts, config, folder)
            for module, places in experts.items()
            for place, pair in places.items()
        ]
    return Adapter(folder, config, {delta.name: delta for delta in deltas}, copies)


def _reading(
    folder: Path, config: Mapping[str, Any], experts: Mapping[str, Places], shape: Shape
) -> tuple[dict[str, str], bool]:
    """The one reading under which all experts fit: (place in the key -> projection, whether PEFT saw `is_transposed`).

    Raises UserError when no reading fits, or more than one.
    """
    first = next(iter(experts.values()))
    if any(set(places) != set(first) for places in experts.values()):
        raise UserError("not every layer's experts have the same updates", where=str(folder / WEIGHTS_FILE))
    pairs = [(module + place, place, a, b) for module, places in experts.items() for place, (a, b) in places.items()]
    for name, _, a, b in pairs:
        if len(a) % shape.experts or b.shape[1] != len(a) or not len(a):
            raise _misshapen(folder, name, a, b, f"[R * {shape.experts}, ...] and [..., R * {shape.experts}]")
    sizes = {name: (inputs, outputs) for name, outputs, inputs in expert_matrices(shape)}
    named = {str(name).rpartition(".")[2] for name in config.get("target_parameters") or []} & sizes.keys()
    fitting = []
    for names in itertools.permutations(named or sizes, len(first)):
        projection = dict(zip(first, names, strict=True))
        found = {(sizes[projection[place]], (a.shape[1], b.shape[0])) for _, place, a, b in pairs}
        fitting += [(projection, True)] if all(size == real for size, real in found) else []
        fitting += [(projection, False)] if all(size[::-1] == real for size, real in found) else []
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        changed = " and ".join(fitting[0][0].values())
        raise UserError(
            "the shapes do not tell how the experts' update is to be read",
            where=str(folder / WEIGHTS_FILE),
            why=f"it changes only {changed}, where PEFT's two conventions differ by a transpose",
            do="train both projections of the experts: their shapes together tell the convention",
        )
    wanted = " and ".join(f"{name} (inputs, outputs) {size}" for name, size in sizes.items())
    raise _misshapen(folder, pairs[0][0], *pairs[0][2:], f"{shape.experts} experts with {wanted}")


def _expert_delta(name: str, pair: Pair, transposed: bool, experts: int, config: dict[str, Any], folder: Path) -> Delta:
    """Bring a pair to [E, R, I] and [E, O, R]. Without `transposed` A stands on the outputs and B on the inputs."""
    a, b = pair
    R = len(a) // experts
    a_ERx = a.reshape(experts, R, -1)
    b_ExR = b.reshape(len(b), R, experts).permute(2, 0, 1)
    scale = _scale(config, name, R, folder)
    if transposed:
        return Delta(name, a_ERx, b_ExR, scale)
    return Delta(name, b_ExR.transpose(1, 2), a_ERx.transpose(1, 2), scale)


def _scale(config: Mapping[str, Any], key: str, rank: int, folder: Path) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA; patterns match the end of the key, as in PEFT."""

    def pick(pattern: str, default: str) -> Any:
        for name, value in (config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({name})$", key):
                return value
        return config[default]

    configured = pick("rank_pattern", "r")
    if rank != configured:
        raise UserError(
            f"{key} has rank {rank}, and {CONFIG_FILE} says {configured}",
            where=str(folder),
            why="the update's scale is alpha / rank, so it is not known",
        )
    alpha = float(pick("alpha_pattern", "lora_alpha"))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"not an adapter in PEFT's layout ({error})", where=str(file)) from None
    if kind != "LORA":
        raise UserError(f"the adapter is of type {kind}, and only LORA can be merged", where=str(file))
    if missing := [key for key in ("r", "lora_alpha") if key not in config]:
        raise UserError(f"the key {missing[0]!r} is missing", where=str(file))
    refused = [key for key in _REFUSED if config.get(key)]
    refused += ["bias"] if config.get("bias", "none") != "none" else []
    init = config.get("init_lora_weights")
    refused += ["init_lora_weights"] if str(init).lower().startswith(_INITS_THAT_CHANGE_THE_BASE) else []
    if refused:
        raise UserError(f"adapters with {refused[0]} = {config[refused[0]]!r} cannot be merged", where=str(file))
    return dict(config)


def _pairs(folder: Path) -> tuple[dict[str, Pair], dict[str, Tensor]]:
    """Module -> (A, B), and the copies of base weights; every tensor of the file is in one of them.

    Those of the embeddings are turned, so that B A is the update of the weight as it lies, [vocabulary, H].
    """
    file = folder / WEIGHTS_FILE
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter's weights cannot be read ({error})", where=str(file)) from None
    copies = {f"{match[1]}.weight": stored.pop(key) for key in list(stored) if (match := _COPY.fullmatch(key))}
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        match = _KEY.fullmatch(key)
        if match is None or tensor.ndim != 2:
            raise UserError(f"{key} is no part of a LoRA update that can be merged", where=str(file))
        found = sides.setdefault(match[1], {})
        side, tensor = (match[2], tensor) if match[2] else ("BA"["AB".index(match[3])], tensor.T)
        if side in found or (match[2] is None) != match[1].endswith("embed_tokens"):
            raise UserError(f"{key} is no part of a LoRA update that can be merged", where=str(file))
        found[side] = tensor
    for module, found in sides.items():
        if len(found) < 2:
            raise UserError(f"{module} has lora_{next(iter(found))} and not its partner", where=str(file))
    if not sides:
        raise UserError("the adapter is empty", where=str(file))
    return {module: (found["A"], found["B"]) for module, found in sides.items()}, copies


def _misshapen(folder: Path, module: str, a: Tensor, b: Tensor, wanted: str) -> UserError:
    return UserError(
        f"{module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, which do not fit {wanted}",
        where=str(folder / WEIGHTS_FILE),
        why="the adapter was made for another base model",
        do="give the model it was trained on with --model",
    )
