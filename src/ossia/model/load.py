"""A checkpoint folder in, a transformers model out, with the experts still in four bits.

Tensors are memory-mapped and assigned, not copied: on a CPU only the pages that are touched take memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ossia import hardware
from ossia.model.checkpoint import CheckpointReader
from ossia.model.layout import Shape
from ossia.model.locate import locate
from ossia.model.mxfp4 import check_scales

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ossia.model.modeling import OssiaForCausalLM


def load(
    path: str | Path, *, dtype: str = "auto", device: str = "auto", adapter: str | Path | None = None
) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return (model, tokenizer) of a checkpoint in the published layout.

    Args:
        path: a folder, or a hub id that `ossia fetch` has downloaded.
        dtype: of everything that is not four-bit: auto, bfloat16 or float32.
        device: auto, cpu or cuda.
        adapter: folder of a LoRA adapter in PEFT's layout to put on it.

    Returns:
        An `OssiaForCausalLM` (a `PeftModel` around it with an adapter) in evaluation mode, and its tokenizer.

    Raises:
        UserError: the folder is not a complete gpt-oss checkpoint; names what is missing, truncated or misshapen.
    """
    from transformers import AutoTokenizer

    folder = locate(path)
    model = load_model(folder, dtype=dtype, device=device)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if adapter is None:
        return model, tokenizer
    from ossia.model import lora

    return lora.load(model, Path(adapter)).eval(), tokenizer


def load_model(folder: Path, *, dtype: str = "auto", device: str = "auto") -> OssiaForCausalLM:
    """Return the model alone. See `load`."""
    from transformers import GptOssConfig

    from ossia.model.modeling import empty, is_packed

    on = hardware.device(device).value
    kind = getattr(torch, hardware.dtype(dtype, on).value)
    reader = CheckpointReader(folder)
    config = GptOssConfig.from_pretrained(str(folder))
    reader.check(Shape.from_config(reader.config()), mxfp4=is_packed(config))
    model = empty(config, kind)
    tensors = {}
    for name in reader.names():
        tensor = reader.get(name)
        if name.endswith("_scales"):
            check_scales(tensor, f"{folder} {name}")
        tensors[name] = tensor.to(on) if tensor.dtype == torch.uint8 else tensor.to(on, kind)
    model.load_state_dict(tensors, strict=True, assign=True)
    model.model.rotary_emb.to(on)
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    model.requires_grad_(False)
    return model.eval()
