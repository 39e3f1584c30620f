"""Tests of the native engine against plain decoding without a cache, and of its seeds, stops and adapters."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ossia.adapters import apply as lora
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.generate.engine import BASE_WEIGHTS, Completion, Request, Sampling, completion
from ossia.generate.native import SerialEngine
from ossia.generate.sampling import Sampler
from ossia.model.load import load_model
from support.generate_fakes import numbered

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
    """Prompts of different lengths. Some are longer than the window of 16."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 512, (n,), generator=generator).tolist() for n in (5, 40, 23, 3, 17, 30, 8)]


@torch.no_grad()
def greedy_without_cache(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def ids_of(stream: Any) -> tuple[int, ...]:
    return tuple(token.id for token in stream)


def test_a_mixed_batch_is_decoded_as_each_prompt_alone_without_cache(model: Any, prompts: list[list[int]]) -> None:
    made = SerialEngine(model, batch_size=4).complete(numbered(prompts, Request(max_new_tokens=20, stop=NO_STOP)))
    assert [list(one.ids) for one in made] == [greedy_without_cache(model, prompt, 20) for prompt in prompts]
    assert {one.finish for one in made} == {"length"}


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_stream_gives_the_ids_of_the_whole_completion(
    model: Any, prompts: list[list[int]], temperature: float
) -> None:
    engine, sampling = SerialEngine(model), Sampling(temperature=temperature, top_p=0.95)
    like = Request(sampling=sampling, max_new_tokens=20, seed=7, stop=frozenset({3, 4, 5}))
    requests = numbered(prompts[:3], like)
    for request, made in zip(requests, engine.complete(requests), strict=True):
        stream = engine.submit(request)
        assert stream.finish is None
        assert (ids_of(stream), stream.finish) == (made.ids, made.finish)


def test_rows_stop_at_their_own_stop_token(model: Any, prompts: list[list[int]]) -> None:
    free = SerialEngine(model).complete(numbered(prompts, Request(max_new_tokens=20, stop=NO_STOP)))
    # The two ids end two rows at different places. The other rows continue.
    stop = frozenset({free[0].ids[4], free[1].ids[11]})
    made = SerialEngine(model).complete(numbered(prompts, Request(max_new_tokens=20, stop=stop)))
    assert made == [completion(one.ids, stop) for one in free]
    assert [one.finish for one in made].count("stop") >= 2
    assert len({len(one.ids) for one in made}) >= 2
    for one in made:
        assert (one.ids[-1] in stop) == (one.finish == "stop")
        assert not stop & set(one.ids[:-1])


def test_sampling_depends_on_seed_and_number_but_not_on_the_rest_of_the_batch(
    model: Any, prompts: list[list[int]]
) -> None:
    like = Request(sampling=Sampling(temperature=1.0), max_new_tokens=15, seed=3, stop=NO_STOP)
    requests = numbered(prompts, like)
    together = SerialEngine(model, batch_size=16).complete(requests)
    torch.rand(5)  # the global generator has no effect
    assert SerialEngine(model, batch_size=2).complete(requests) == together
    assert SerialEngine(model).complete(requests[:3]) == together[:3]
    other = SerialEngine(model).complete([dataclasses.replace(request, seed=4) for request in requests])
    assert all(a != b for a, b in zip(together, other, strict=True))
    twins = SerialEngine(model).complete(numbered([prompts[0]] * 2, like))
    assert twins[0] != twins[1], "equal prompts with numbers of their own get answers of their own"


def test_requests_that_differ_are_answered_in_one_call(tuned: Any, prompts: list[list[int]]) -> None:
    """Requests with other lengths, samplings or adapters are decoded apart, with the results of single calls."""
    hot = Sampling(temperature=1.2, top_k=20)
    kinds = [
        Request(max_new_tokens=5, stop=NO_STOP),
        Request(max_new_tokens=9, stop=NO_STOP, sampling=hot, seed=2),
        Request(max_new_tokens=9, stop=NO_STOP, adapter=BASE_WEIGHTS),
    ]
    requests = [
        dataclasses.replace(kinds[number % 3], prompt=tuple(prompt), number=number)
        for number, prompt in enumerate(prompts)
    ]
    engine = SerialEngine(tuned)
    assert engine.complete(requests) == [engine.complete([request])[0] for request in requests]


def test_every_completion_is_reported_once(model: Any, prompts: list[list[int]]) -> None:
    heard: dict[int, Completion] = {}
    made = SerialEngine(model, batch_size=3).complete(
        numbered(prompts, Request(max_new_tokens=3, stop=NO_STOP)), lambda index, one: heard.update({index: one})
    )
    assert [heard[index] for index in range(len(prompts))] == made
    assert SerialEngine(model).complete([]) == []


def test_the_adapter_can_be_switched_off(tuned: Any, model: Any, prompts: list[list[int]]) -> None:
    like = Request(max_new_tokens=12, stop=NO_STOP)
    base = SerialEngine(model).complete(numbered(prompts, like))
    tuned.train()
    grads = {name: parameter.requires_grad for name, parameter in tuned.named_parameters()}
    without = numbered(prompts, dataclasses.replace(like, adapter=BASE_WEIGHTS))
    assert SerialEngine(tuned).complete(without) == base
    assert ids_of(SerialEngine(tuned).submit(without[1])) == base[1].ids
    assert tuned.training
    assert {name: parameter.requires_grad for name, parameter in tuned.named_parameters()} == grads
    after = SerialEngine(tuned).complete(numbered(prompts, like))
    assert sum(a != b for a, b in zip(after, base, strict=True)) >= 5


def test_a_frozen_adapter_stays_frozen_and_on(tuned: Any, prompts: list[list[int]]) -> None:
    tuned.requires_grad_(False)
    requests = numbered(prompts[:2], Request(max_new_tokens=6, stop=NO_STOP))
    before = SerialEngine(tuned).complete(requests)
    SerialEngine(tuned).complete([dataclasses.replace(request, adapter=BASE_WEIGHTS) for request in requests])
    assert not any(parameter.requires_grad for parameter in tuned.parameters())
    assert SerialEngine(tuned).complete(requests) == before


def test_what_cannot_be_answered_is_refused(model: Any, tuned: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        SerialEngine(model).submit(Request())
    with pytest.raises(ValueError, match="no adapter 'legal'; there are: base, default"):
        SerialEngine(tuned).complete([Request(prompt=(1,), adapter="legal")])


def test_only_the_last_position_gets_logits(model: Any, prompts: list[list[int]]) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, out: shapes.append(tuple(out.shape)))
    requests = numbered(prompts[:2], Request(max_new_tokens=2, stop=NO_STOP))
    try:
        SerialEngine(model).complete(requests)
        list(SerialEngine(model).submit(requests[1]))
    finally:
        hook.remove()
    assert shapes == [(2, 1, 512)] * 2 + [(1, 1, 512)] * 2
    assert model(input_ids=torch.tensor([prompts[0]])).logits.shape[1] == len(prompts[0]), "and nothing is left behind"


def test_a_reader_may_stop_reading_a_stream(model: Any, prompts: list[list[int]]) -> None:
    request = Request(prompt=tuple(prompts[0]), max_new_tokens=50, stop=NO_STOP)
    stream = SerialEngine(model).submit(request)
    first = [token.id for token in itertools.islice(stream, 3)]
    assert torch.is_grad_enabled(), "the stream does not change the reader's settings"
    assert first == greedy_without_cache(model, prompts[0], 3)
    stream.cancel()
    assert list(stream) == []
    assert stream.finish == "cancelled"


def test_logprobs_are_the_models(model: Any, prompts: list[list[int]]) -> None:
    """They equal those of a plain forward pass over prompt and completion, for any temperature and filters."""
    hot = Sampling(temperature=1.5, top_p=0.9)
    requests = numbered(prompts[:3], Request(max_new_tokens=6, stop=NO_STOP, logprobs=2, sampling=hot))
    for request, made in zip(requests, SerialEngine(model).complete(requests), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*request.prompt, *made.ids]])).logits[0]
        expected = logits[len(request.prompt) - 1 : -1].log_softmax(-1)
        assert [token.id for token in made.tokens] == list(made.ids)
        for place, token in enumerate(made.tokens):
            assert token.logprob == pytest.approx(float(expected[place, token.id]), abs=1e-4)
            top = expected[place].topk(2)
            assert [one for one, _ in token.most_likely] == top.indices.tolist()
            assert [value for _, value in token.most_likely] == pytest.approx(top.values.tolist(), abs=1e-4)
        streamed = list(SerialEngine(model).submit(request))
        assert [token.logprob for token in streamed] == pytest.approx([t.logprob for t in made.tokens], abs=1e-4)
        assert [len(token.most_likely) for token in streamed] == [2] * 6


class Alternating:
    """A constraint that allows even and odd tokens alternately, even tokens first."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self) -> torch.Tensor:
        return torch.arange(512) % 2 == len(self.taken) % 2

    def accept(self, token: int) -> None:
        self.taken.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_binds_its_own_request_only(model: Any, prompts: list[list[int]], temperature: float) -> None:
    sampling = Sampling(temperature=temperature)
    free = numbered(prompts[:3], Request(max_new_tokens=8, stop=NO_STOP, sampling=sampling, seed=1))
    made: list[Alternating] = []

    def constraint() -> Alternating:
        made.append(Alternating())
        return made[-1]

    bound = dataclasses.replace(free[1], constraint=constraint)
    engine = SerialEngine(model)
    unbound = engine.complete(free)
    mixed = engine.complete([free[0], bound, free[2]])
    assert (mixed[0], mixed[2]) == (unbound[0], unbound[2])
    assert [token % 2 for token in mixed[1].ids] == [0, 1] * 4
    assert made[0].taken == list(mixed[1].ids)
    assert ids_of(engine.submit(bound)) == mixed[1].ids, "a new constraint for each completion"


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    draws, temperature = 20_000, 0.8
    like = Request(sampling=Sampling(temperature=temperature), seed=11)
    sampler = Sampler([dataclasses.replace(like, number=number) for number in range(draws)])
    counts = collections.Counter(sampler(logits.expand(draws, -1)).tolist())
    for token, probability in enumerate((logits / temperature).softmax(-1).tolist()):
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[token] - draws * probability) < 4 * deviation


def draws_of(sampling: Sampling, logits: torch.Tensor, draws: int = 3000) -> set[int]:
    like = Request(sampling=sampling)
    sampler = Sampler([dataclasses.replace(like, number=number) for number in range(draws)])
    return set(sampler(logits.expand(draws, -1)).tolist())


FILTERS = {
    "top_p": (Sampling(temperature=1.0, top_p=0.5), [TopPLogitsWarper(0.5)]),
    "low top_p": (Sampling(temperature=1.0, top_p=0.05), [TopPLogitsWarper(0.05)]),
    "high top_p": (Sampling(temperature=1.0, top_p=0.9), [TopPLogitsWarper(0.9)]),
    "top_k": (Sampling(temperature=1.0, top_k=7), [TopKLogitsWarper(7)]),
    "min_p": (Sampling(temperature=1.0, min_p=0.1), [MinPLogitsWarper(0.1)]),
    "all": (
        Sampling(temperature=1.0, top_k=12, top_p=0.8, min_p=0.05),
        [TopKLogitsWarper(12), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)],
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_the_tokens_that_transformers_keeps(name: str) -> None:
    sampling, warpers = FILTERS[name]
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        logits = 2 * torch.randn(1, 40, generator=generator)
        kept = logits
        for warper in warpers:
            kept = warper(torch.zeros(1, 1, dtype=torch.int64), kept)
        allowed = kept[0].isfinite()
        drawn = draws_of(sampling, logits)
        assert drawn <= set(allowed.nonzero()[:, 0].tolist())
        likely = (allowed & (logits.softmax(-1)[0] > 0.01)).nonzero()[:, 0].tolist()
        assert set(likely) <= drawn


WRONG = [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 2.0}]


@pytest.mark.parametrize("wrong", WRONG)
def test_impossible_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needed"):
        Sampling(**wrong)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"logprobs": -1}])
def test_impossible_requests_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needed"):
        Request(**wrong)
