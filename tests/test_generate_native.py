"""The native engine against plain decoding without a cache, and its promises about seeds, stops and the adapter."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import TopPLogitsWarper

from ossia.adapters import apply as lora
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.generate.engine import Completion, Sampling, completion
from ossia.generate.native import NativeEngine
from ossia.generate.sampling import Sampler
from ossia.model.load import load_model

NO_STOP: frozenset[int] = frozenset()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(write_tiny(tmp_path_factory.mktemp("native") / "micro", MICRO), dtype="float32", device="cpu")


@pytest.fixture
def tuned(tmp_path: Path) -> Any:
    fresh = load_model(write_tiny(tmp_path / "micro", MICRO), dtype="float32", device="cpu")
    peft_model = lora.attach_adapter(fresh, rank=4, expert_rank=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in lora.trainable_parameters(peft_model):
            parameter.normal_(0, 0.3)
    return peft_model.eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Of different lengths, some beyond the window of 16."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 512, (n,), generator=generator).tolist() for n in (5, 40, 23, 3, 17, 30, 8)]


@torch.no_grad()
def greedy_without_cache(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_a_mixed_batch_is_decoded_as_each_prompt_alone_without_cache(model: Any, prompts: list[list[int]]) -> None:
    made = NativeEngine(model, batch_size=4).batch(prompts, Sampling(max_new_tokens=20, stop=NO_STOP))
    assert [list(one.ids) for one in made] == [greedy_without_cache(model, prompt, 20) for prompt in prompts]
    assert {one.finish for one in made} == {"length"}


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_stream_is_the_first_row_of_a_batch(model: Any, prompts: list[list[int]], temperature: float) -> None:
    engine = NativeEngine(model)
    sampling = Sampling(temperature=temperature, top_p=0.95, max_new_tokens=20, seed=7, stop=frozenset({3, 4, 5}))
    for prompt in prompts[:3]:
        assert tuple(engine.stream(prompt, sampling)) == engine.batch([prompt], sampling)[0].ids


def test_rows_stop_at_their_own_stop_token(model: Any, prompts: list[list[int]]) -> None:
    free = NativeEngine(model).batch(prompts, Sampling(max_new_tokens=20, stop=NO_STOP))
    # Two ids that end two rows at different places; the others run on.
    stop = frozenset({free[0].ids[4], free[1].ids[11]})
    made = NativeEngine(model).batch(prompts, Sampling(max_new_tokens=20, stop=stop))
    assert made == [completion(one.ids, stop) for one in free]
    assert [one.finish for one in made].count("stop") >= 2
    assert len({len(one.ids) for one in made}) >= 2
    for one in made:
        assert (one.ids[-1] in stop) == (one.finish == "stop")
        assert not stop & set(one.ids[:-1])


def test_sampling_depends_on_the_seed_and_the_row_but_not_on_the_rest_of_the_batch(
    model: Any, prompts: list[list[int]]
) -> None:
    sampling = Sampling(temperature=1.0, max_new_tokens=15, seed=3, stop=NO_STOP)
    together = NativeEngine(model, batch_size=16).batch(prompts, sampling)
    torch.rand(5)  # the global generator does not matter
    assert NativeEngine(model, batch_size=2).batch(prompts, sampling) == together
    assert NativeEngine(model).batch(prompts[:3], sampling) == together[:3]
    other = NativeEngine(model).batch(prompts, Sampling(temperature=1.0, max_new_tokens=15, seed=4, stop=NO_STOP))
    assert all(a != b for a, b in zip(together, other, strict=True))
    twins = NativeEngine(model).batch([prompts[0]] * 2, sampling)
    assert twins[0] != twins[1], "equal prompts in a batch get answers of their own"


def test_every_completion_is_reported_once(model: Any, prompts: list[list[int]]) -> None:
    heard: dict[int, Completion] = {}
    made = NativeEngine(model, batch_size=3).batch(
        prompts, Sampling(max_new_tokens=3, stop=NO_STOP), lambda index, one: heard.update({index: one})
    )
    assert [heard[index] for index in range(len(prompts))] == made
    assert NativeEngine(model).batch([], Sampling()) == []


def test_the_adapter_can_be_switched_off(tuned: Any, model: Any, prompts: list[list[int]]) -> None:
    sampling = Sampling(max_new_tokens=12, stop=NO_STOP)
    base = NativeEngine(model).batch(prompts, sampling)
    tuned.train()
    grads = {name: parameter.requires_grad for name, parameter in tuned.named_parameters()}
    assert NativeEngine(tuned, adapter=False).batch(prompts, sampling) == base
    assert tuple(NativeEngine(tuned, adapter=False).stream(prompts[1], sampling)) == base[1].ids
    assert tuned.training
    assert {name: parameter.requires_grad for name, parameter in tuned.named_parameters()} == grads
    after = NativeEngine(tuned).batch(prompts, sampling)
    assert sum(a != b for a, b in zip(after, base, strict=True)) >= 5


def test_a_frozen_adapter_stays_frozen_and_on(tuned: Any, prompts: list[list[int]]) -> None:
    tuned.requires_grad_(False)
    sampling = Sampling(max_new_tokens=6, stop=NO_STOP)
    before = NativeEngine(tuned).batch(prompts[:2], sampling)
    NativeEngine(tuned, adapter=False).batch(prompts[:2], sampling)
    assert not any(parameter.requires_grad for parameter in tuned.parameters())
    assert NativeEngine(tuned).batch(prompts[:2], sampling) == before


def test_only_the_last_position_gets_logits(model: Any, prompts: list[list[int]]) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, out: shapes.append(tuple(out.shape)))
    try:
        NativeEngine(model).batch(prompts[:2], Sampling(max_new_tokens=2, stop=NO_STOP))
        list(NativeEngine(model).stream(prompts[1], Sampling(max_new_tokens=2, stop=NO_STOP)))
    finally:
        hook.remove()
    assert shapes == [(2, 1, 512)] * 2 + [(1, 1, 512)] * 2
    assert model(input_ids=torch.tensor([prompts[0]])).logits.shape[1] == len(prompts[0]), "and nothing is left behind"


def test_a_reader_may_stop_reading_a_stream(model: Any, prompts: list[list[int]]) -> None:
    stream = NativeEngine(model).stream(prompts[0], Sampling(max_new_tokens=50, stop=NO_STOP))
    first = list(itertools.islice(stream, 3))
    assert torch.is_grad_enabled(), "the stream does not change the reader's settings"
    assert first == greedy_without_cache(model, prompts[0], 3)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    draws, temperature = 20_000, 0.8
    sampler = Sampler(Sampling(temperature=temperature, seed=11), range(draws))
    counts = collections.Counter(sampler(logits.expand(draws, -1)).tolist())
    for token, probability in enumerate((logits / temperature).softmax(-1).tolist()):
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[token] - draws * probability) < 4 * deviation


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_top_p_keeps_the_tokens_that_transformers_keeps(top_p: float) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        logits = 2 * torch.randn(1, 40, generator=generator)
        sampler = Sampler(Sampling(temperature=1.0, top_p=top_p), range(3000))
        kept = TopPLogitsWarper(top_p)(torch.zeros(1, 1, dtype=torch.int64), logits)[0].isfinite()
        drawn = set(sampler(logits.expand(3000, -1)).tolist())
        assert drawn <= set(kept.nonzero()[:, 0].tolist())
        likely = (kept & (logits.softmax(-1)[0] > 0.01)).nonzero()[:, 0].tolist()
        assert set(likely) <= drawn


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}])
def test_impossible_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needed"):
        Sampling(**wrong)
