"""The engine in this process, which generates with an Ossia model and its adapter, if there is one.

It computes one request or one batch at a time. Whole completions go through transformers' `generate`, in batches of
prompts of similar length, padded on the left. A stream has its own short loop, a prefill and then single steps. It
needs no thread, so no work continues when the reader stops reading. Both compute the logits of the last position
only: [B, 201088] and never [B, T, 201088].
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from ossia.errors import DoesNotFitError
from ossia.generate.engine import BASE_WEIGHTS, Completion, Finish, OnCompletion, Request, Token, completion
from ossia.generate.sampling import Sampler
from ossia.harmony.tokenizer.vocabulary import ENDOFTEXT


class SerialEngine:
    """An engine on a model in memory. A model in training mode returns to training mode after each call."""

    def __init__(self, model: Any, *, batch_size: int = 16) -> None:
        """
        Args:
            model: an `OssiaForCausalLM` or a `PeftModel` around it. Calls for `BASE_WEIGHTS` switch the adapter off. So
                tuned and base model are compared on the same base weights.
            batch_size: most requests that `complete` answers together.
        """
        self.model, self.batch_size = model, batch_size

    def submit(self, request: Request) -> NativeStream:
        """Return the stream of one completion. Each token is computed when the reader requests it.

        Raises:
            ValueError: the prompt is empty, or there is no adapter of the requested name.
        """
        self._check(request)
        return NativeStream(self, request)

    def complete(self, requests: Sequence[Request], on_completion: OnCompletion | None = None) -> list[Completion]:
        """Return the completions of many requests, in the order of the requests.

        `on_completion` is called for the requests of each batch (up to `batch_size`) when the batch is complete.

        Raises:
            ValueError: a prompt is empty, or there is no adapter of a requested name.
            DoesNotFitError: the GPU does not have enough memory.
        """
        for request in requests:
            self._check(request)
        done: dict[int, Completion] = {}
        for part in self._batches(requests):
            for index, made in zip(part, self._generate([requests[i] for i in part]), strict=True):
                done[index] = made
                if on_completion is not None:
                    on_completion(index, made)
        return [done[index] for index in range(len(requests))]

    def description(self) -> dict[str, Any]:
        """Return the dtype of the weights that are not packed, and the device."""
        return {"dtype": str(self.model.dtype).removeprefix("torch."), "device": str(self.model.device)}

    def _check(self, request: Request) -> None:
        if not request.prompt:
            raise ValueError("the prompt of a request is empty")
        known = {None, BASE_WEIGHTS, *(self.model.peft_config if isinstance(self.model, PeftModel) else ())}
        if request.adapter not in known:
            names = ", ".join(sorted(name for name in known if name))
            raise ValueError(f"there is no adapter {request.adapter!r}; there are: {names}")

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Yield batches of indices of requests that `generate` can answer together, similar lengths together."""

        def settings(index: int) -> tuple[Any, ...]:
            request = requests[index]
            return request.adapter or "", request.max_new_tokens, sorted(request.stop), repr(request.sampling)

        order = sorted(range(len(requests)), key=lambda index: (settings(index), len(requests[index].prompt)))
        for _, group in itertools.groupby(order, settings):
            alike = list(group)
            yield from (alike[start : start + self.batch_size] for start in range(0, len(alike), self.batch_size))

    def _generate(self, requests: Sequence[Request]) -> list[Completion]:
        longest, first = max(len(request.prompt) for request in requests), requests[0]
        pad = self._padding()
        ids_BT = torch.full((len(requests), longest), pad, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, request in enumerate(requests):
            ids_BT[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            mask_BT[row, longest - len(request.prompt) :] = 1
        config = GenerationConfig(
            do_sample=False,  # greedy search takes the one token that the logits processor has left
            max_new_tokens=first.max_new_tokens,
            eos_token_id=sorted(first.stop),
            pad_token_id=pad,
            use_cache=True,
        )
        sampler = Sampler(requests)
        with self.ready(first.adapter):
            out_BT = self.model.generate(
                input_ids=ids_BT.to(self.model.device),
                attention_mask=mask_BT.to(self.model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([] if sampler.is_plain else [_Choose(sampler)]),
            )
        rows = zip(out_BT[:, longest:].tolist(), sampler.tokens, strict=True)
        return [completion(row, first.stop, tokens) for row, tokens in rows]

    def _padding(self) -> int:
        # Only the embedding of this id is read, and masks exclude it. Reduced vocabularies lack the published id.
        return ENDOFTEXT if self.model.config.vocab_size > ENDOFTEXT else 0

    @contextlib.contextmanager
    def ready(self, adapter: str | None) -> Iterator[None]:
        """Put the model into evaluation mode with the adapter of a request inside the block, and restore it afterwards.

        Raises:
            DoesNotFitError: the GPU does not have enough memory.
        """
        training, tuned = self.model.training, isinstance(self.model, PeftModel)
        before = self.model.active_adapter if tuned else None
        off, other = tuned and adapter == BASE_WEIGHTS, tuned and adapter not in (None, BASE_WEIGHTS, before)
        # PEFT makes adapters trainable when it switches them on again. So parameters that were frozen are frozen again.
        changed = list(self.model.parameters()) if off or other else []
        frozen = [parameter for parameter in changed if not parameter.requires_grad]
        if training:
            self.model.eval()
        if other:
            self.model.set_adapter(adapter)
        try:
            with self.model.disable_adapter() if off else contextlib.nullcontext():
                yield
        except torch.OutOfMemoryError:
            raise DoesNotFitError(
                "the GPU does not have enough memory to generate", do="--set eval.batch_size=1, or fewer new tokens"
            ) from None
        finally:
            if other:
                self.model.set_adapter(before)
            for parameter in frozen:
                parameter.requires_grad_(False)
            if training:
                self.model.train()


class NativeStream:
    """The tokens of one completion, computed as they are read."""

    def __init__(self, engine: SerialEngine, request: Request) -> None:
        self.finish: Finish | None = None
        """The reason the completion ended, or None before its end."""
        self._engine, self._request = engine, request
        self._tokens = self._made()

    def __iter__(self) -> Iterator[Token]:
        return self._tokens

    def cancel(self) -> None:
        """End the completion. No further token is computed. Another thread may call this."""
        self.finish = self.finish or "cancelled"

    def _made(self) -> Iterator[Token]:
        request, model = self._request, self._engine.model
        cache, sampler = DynamicCache(config=model.config), Sampler([request])
        ids = list(request.prompt)
        for count in range(1, request.max_new_tokens + 1):
            if self.finish is not None:
                return
            # The contexts are entered for each step. Around the `yield` they would also apply to the reader's code.
            with torch.no_grad(), self._engine.ready(request.adapter):
                input_ids = torch.tensor([ids], device=model.device)
                out = model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                token = int(sampler(out.logits[:, -1]))
            if token in request.stop:
                self.finish = "stop"
            elif count == request.max_new_tokens:
                self.finish = self.finish or "length"
            yield sampler.tokens[0][-1] if request.logprobs is not None else Token(token)
            ids = [token]


class _Choose(LogitsProcessor):
    """A logits processor that masks all tokens but the sampler's choice, which greedy search then takes."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen_B = self.sampler(scores)
        return scores.fill_(-torch.inf).scatter_(-1, chosen_B[:, None], 0.0)
