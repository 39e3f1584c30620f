"""The model card, README.md of an export: base, data, settings, evaluation, and code that loads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ossia.config import LoraSection, Recipe, sources_of
from ossia.export.source import ExportSource

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

_LOAD_MERGED = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto", device_map="auto")
```

Or chat with it in a terminal: `ossia chat {name}`."""

_LOAD_ADAPTER = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

tokenizer = AutoTokenizer.from_pretrained("{base}")
base = AutoModelForCausalLM.from_pretrained(
    "{base}", quantization_config=Mxfp4Config(dequantize=True), dtype="auto", device_map="auto"
)
model = PeftModel.from_pretrained(base, "{name}")
```

PEFT needs the experts in floating point, with 16 bits per weight. Ossia applies the adapter to the four-bit weights."""


def model_card(source: ExportSource, name: str, *, merged: bool, experts: str = "") -> str:
    """Return the card in Markdown, with the hub's metadata.

    Args:
        name: the name of the export's folder.
        merged: whether the adapter is merged into its base.
        experts: the format of the experts and the reason for it, in words.
    """
    lines = [*_front_matter(source, merged), "", f"# {name}", ""]
    kind = "merged into its base" if merged else "as a LoRA adapter in PEFT's layout"
    lines += [f"A fine-tune of {_shown(source.base)} made with Ossia, {kind}."]
    lines += ["", f"Experts: {experts}."] if experts else []
    recipe = source.recipe()
    if recipe is not None and recipe.description:
        lines += ["", recipe.description]
    example = _LOAD_MERGED if merged else _LOAD_ADAPTER
    lines += ["", "## Use", "", example.format(name=name, base=_shown(source.base))]
    lines += ["", *_rendering(source, merged)]
    lines += _training(recipe, source.adapter.name) if recipe is not None else []
    evaluation = source.evaluation()
    if evaluation:
        lines += ["", "## Evaluation", "", *_table(_flat(evaluation))]
    return "\n".join(lines) + "\n"


def _front_matter(source: ExportSource, merged: bool) -> list[str]:
    """Return the hub's metadata (huggingface.co/docs/hub/model-cards). A local base has no hub id and is left out."""
    lines = ["---", f"library_name: {'transformers' if merged else 'peft'}", "pipeline_tag: text-generation"]
    if _is_hub_id(source.base):
        lines.append(f"base_model: {source.base}")
        lines.append(f"base_model_relation: {'finetune' if merged else 'adapter'}")
    if source.base.startswith("openai/gpt-oss"):
        lines.append("license: apache-2.0")
    return [*lines, "tags:", "- gpt-oss", "- lora", "- ossia", "---"]


def _rendering(source: ExportSource, merged: bool) -> list[str]:
    """Return the part about conversations: what they have to be rendered with to look as in training."""
    data = source.subject.recipe.data
    rows = [
        ("identity", data.identity),
        ("knowledge cutoff", data.knowledge_cutoff),
        ("date", data.date or "none"),
        ("reasoning effort", data.effort),
        ("built-in tools", ", ".join(data.builtin_tools) or "none"),
        ("headers", data.header_order),
    ]
    lines = ["## Conversations", ""]
    if merged:
        lines += ["The chat template in this folder renders Harmony as in training. Its defaults are:"]
    else:
        lines += ["In training conversations were rendered as Harmony, with a system message of:"]
    return [*lines, "", *_table((key, str(value)) for key, value in rows)]


def _training(recipe: Recipe, checkpoint: str) -> list[str]:
    train = recipe.train
    rows = [
        ("data", ", ".join(Path(source.path).name for source in sources_of(recipe.data.train)) or "not given"),
        ("checkpoint", checkpoint),
        *_adapted(recipe.lora),
        ("examples per step", train.examples_per_step),
        ("learning rate", f"{train.learning_rate:g}, {train.schedule}"),
        ("seed", train.seed),
    ]
    return ["", "## Training", "", *_table((key, str(value)) for key, value in rows)]


def _adapted(lora: LoraSection) -> list[tuple[str, str]]:
    if lora.start_from:
        return [("adapted", f"the targets of {Path(lora.start_from).name}, from which training continued")]
    ranks = lora.ranks_and_alphas().items()
    single = ", ".join(f"{name} {rank}" for name, rank in lora.attention_ranks.items())
    return [
        ("adapted", ", ".join(lora.targets)),
        *((f"rank and alpha of {target}", f"{rank} and {alpha:g}") for target, (rank, alpha) in ranks),
        *([("ranks of single projections", single)] if single else []),
    ]


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the numbers and texts of a nested summary, with dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | str):
            yield f"{prefix}{key}", str(value)
        elif isinstance(value, float):
            yield f"{prefix}{key}", f"{value:.4g}"


def _is_hub_id(base: str) -> bool:
    return bool(_HUB_ID.fullmatch(base)) and not Path(base).exists()


def _shown(base: str) -> str:
    """Return a hub id unchanged, and only the last name of a folder. The rest of the path is private."""
    return base if _is_hub_id(base) else Path(base).name
