"""Loading a checkpoint folder as a transformers model, with the experts still in four bits.

Tensors are memory-mapped and assigned, not copied. On a CPU only the pages that are used take memory. To a GPU they are
copied one at a time, directly from the mapped file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ossia import hardware
from ossia.checkpoint.layout import generation_config_json, is_packed
from ossia.checkpoint.locate import locate, tokenizer_folder
from ossia.checkpoint.reader import CheckpointReader, read_json, side_file
from ossia.errors import OssiaError, UserError
from ossia.kernels.reference.mxfp4 import nan_scales

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ossia.model.modeling import OssiaForCausalLM


def load(
    path: str | Path, *, dtype: str = "auto", device: str = "auto", adapter: str | Path | None = None
) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return (model, tokenizer) of a checkpoint in the published layout or that of OpenAI's reference code.

    Args:
        path: a folder (of a checkpoint, or of a repository that has one in its `original/`), or a hub id that
            `ossia fetch` has downloaded. `ossia.checkpoint.locate` lists further forms.
        dtype: the dtype of all weights that are not four-bit: auto, bfloat16 or float32.
        device: auto, cpu or cuda.
        adapter: folder of a LoRA adapter in PEFT's layout, which is put on the model.

    Returns:
        An `OssiaForCausalLM` in evaluation mode (with an adapter, a `PeftModel` around it), and the checkpoint's
        tokenizer. A checkpoint of the published vocabulary without a tokenizer gets the published one, rebuilt.

    Raises:
        UserError: the folder is not a complete gpt-oss checkpoint; the message names the missing, truncated or
            misshapen parts. Also if the tokenizer or the device is missing.
    """
    folder = locate(path)
    tokenizer = load_tokenizer(folder)  # first, because it is quick to fail
    model = load_model(folder, dtype=dtype, device=device)
    if adapter is None:
        return model, tokenizer
    from ossia.adapters.apply import load_adapter

    return load_adapter(model, Path(adapter)).eval(), tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a checkpoint, with gpt-oss's chat template if it has none. See `load`."""
    from transformers import AutoTokenizer

    place = tokenizer_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(place), trust_remote_code=False)
    except Exception as error:  # a damaged file gives a KeyError here, and tokenizers raises plain Exceptions
        what = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"transformers cannot read the tokenizer ({type(error).__name__}: {what})",
            where=str(place),
            do="copy tokenizer.json and tokenizer_config.json from openai/gpt-oss-20b into the folder",
        ) from error
    if tokenizer.chat_template is None:
        from ossia.harmony import chat_template

        tokenizer.chat_template = chat_template()
    return tokenizer  # type: ignore[no-any-return]


def load_model(folder: Path, *, dtype: str = "auto", device: str = "auto") -> OssiaForCausalLM:
    """Return the model of a checkpoint, without an adapter. See `load`."""
    from transformers import GenerationConfig, GptOssConfig

    from ossia.model.modeling import empty

    on = hardware.device(device).value
    compute_dtype = getattr(torch, hardware.dtype(dtype, on).value)
    reader = CheckpointReader(folder)
    shape = reader.shape()
    generation = GenerationConfig(**generation_config_json(shape)) if reader.is_original else None
    with _readable(folder / "config.json"):
        config = GptOssConfig.from_dict(reader.config())
    reader.check(shape, mxfp4=is_packed(config))
    model = empty(config, compute_dtype)
    model.load_state_dict(placed(reader, on, compute_dtype), strict=True, assign=True)
    model.model.rotary_emb.to(on)
    file = side_file(folder, "generation_config.json")
    if file is not None:
        with _readable(file):
            generation = GenerationConfig.from_dict(read_json(file))
    if generation is not None:
        model.generation_config = generation
    model.requires_grad_(False)
    return model.eval()


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what transformers says of values that it does not take into a sentence with the file's name."""
    try:
        yield
    except OssiaError:
        raise
    except Exception as error:  # it checks types and values with exceptions of many classes
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"transformers cannot read it ({what})", where=str(file), do="fetch the file again") from None


def placed(reader: CheckpointReader, on: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the checkpoint's tensors by name, on the device `on`. Packed ones stay uint8; all others get `dtype`.

    On a CPU they stay mapped to the file, unless their dtype changes. To another device the stored bytes are copied,
    and their dtype changes there. Each mapped tensor is released before the next one is read, so that main memory
    never holds a second copy.

    Raises:
        UserError: a scale of the experts is NaN; the message names its tensor.
    """
    tensors = {}
    for name in reader.names():
        tensor = reader.get(name)
        if name.endswith("_scales"):
            _check_scales(tensor, f"{reader.stored[name].file}: {name}")
        tensor = tensor.to(on)
        tensors[name] = tensor if tensor.dtype == torch.uint8 else tensor.to(dtype)
        del tensor
    return tensors


def _check_scales(scales: Tensor, where: str) -> None:
    count = nan_scales(scales)
    if count:
        raise UserError(
            f"{count} of {scales.numel()} MXFP4 scales are NaN",
            where=where,
            why="the file is damaged, or was written by a broken conversion",
            do="download or export the model again",
        )
