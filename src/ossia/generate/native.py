"""The engine in this process: an Ossia model, with or without its adapter, and transformers' `generate`.

A batch goes through `generate` in parts of similar length, padded on the left. A stream is its own short loop of a
prefill and single steps, so that nothing runs on in a thread when the reader stops reading. Both ask only for the
logits of the last position: [B, 201088] and never [B, T, 201088].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from ossia.errors import DoesNotFitError
from ossia.generate.engine import Completion, OnCompletion, Sampling, completion
from ossia.generate.sampling import Sampler
from ossia.harmony.tokenizer.vocabulary import ENDOFTEXT


class NativeEngine:
    """Generates with a model in memory. A model in training mode is put back into it after each call."""

    def __init__(self, model: Any, *, batch_size: int = 16, adapter: bool = True) -> None:
        """
        Args:
            model: an `OssiaForCausalLM` or a `PeftModel` around it.
            batch_size: most prompts answered together.
            adapter: False answers with the base weights alone, the adapter switched off for the time of each call. Two
                engines over one model so compare before and after on the same bytes.
        """
        self.model, self.batch_size, self.adapter = model, batch_size, adapter

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield the ids of one completion as they are made."""
        cache = DynamicCache(config=self.model.config)
        sampler = Sampler(sampling, [0])
        ids = list(prompt)
        for _ in range(sampling.max_new_tokens):
            token = self._step(ids, cache, sampler)
            yield token
            if token in sampling.stop:
                return
            ids = [token]

    def batch(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_progress: OnCompletion | None = None
    ) -> list[Completion]:
        """Continue many prompts; `on_progress` hears of each part of `batch_size` prompts when it is done."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        done: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            for index, made in zip(part, self._generate(part, [prompts[i] for i in part], sampling), strict=True):
                done[index] = made
                if on_progress is not None:
                    on_progress(index, made)
        return [done[index] for index in range(len(prompts))]

    def _step(self, ids: list[int], cache: DynamicCache, sampler: Sampler) -> int:
        # The contexts are entered for each step: around a `yield` they would leak into whoever reads the stream.
        with torch.no_grad(), self._ready():
            input_ids = torch.tensor([ids], device=self.model.device)
            out = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return int(sampler(out.logits[:, -1]))

    def _generate(self, rows: list[int], prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
        longest = max(map(len, prompts))
        pad = self._padding()
        ids_BT = torch.full((len(prompts), longest), pad, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, longest - len(prompt) :] = 1
        config = GenerationConfig(
            do_sample=False,  # the logits processor has chosen; greedy search takes what it left
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(sampling.stop),
            pad_token_id=pad,
            use_cache=True,
        )
        chooser = [] if sampling.temperature == 0 else [_Choose(Sampler(sampling, rows))]
        with self._ready():
            out_BT = self.model.generate(
                input_ids=ids_BT.to(self.model.device),
                attention_mask=mask_BT.to(self.model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList(chooser),
            )
        return [completion(row, sampling.stop) for row in out_BT[:, longest:].tolist()]

    def _padding(self) -> int:
        # Only its embedding is looked up; masks keep it out. Reduced vocabularies do not have the published id.
        return ENDOFTEXT if self.model.config.vocab_size > ENDOFTEXT else 0

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """Evaluation mode, the adapter off if asked for, and a readable error when the GPU is full."""
        training, off = self.model.training, isinstance(self.model, PeftModel) and not self.adapter
        # PEFT makes adapters trainable when it switches them on again; what was frozen before is frozen afterwards.
        frozen = [parameter for parameter in self.model.parameters() if not parameter.requires_grad] if off else []
        if training:
            self.model.eval()
        try:
            with self.model.disable_adapter() if off else contextlib.nullcontext():
                yield
        except torch.OutOfMemoryError:
            raise DoesNotFitError(
                "the GPU has not enough memory to generate", do="--set eval.batch_size=1, or fewer new tokens"
            ) from None
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            if training:
                self.model.train()


class _Choose(LogitsProcessor):
    """Lets the sampler choose and leaves only its choice to greedy search."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen_B = self.sampler(scores)
        return scores.fill_(-torch.inf).scatter_(-1, chosen_B[:, None], 0.0)
