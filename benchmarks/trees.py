"""Prefix sharing beside the same training without it, and beside TRL's SFTTrainer with PEFT: seconds for an epoch.

The model is a slice of gpt-oss: two layers of the real width with all 32 experts and a vocabulary of 16,768. Training
is in bfloat16 with recompute, AdamW and LoRA of rank 16 on attention and experts. Every side runs in its own process,
on the same weights and on the same examples of `benchmarks.tree_sets`, one per assistant turn.

    trl             SFTTrainer at its defaults: rows padded to the longest of their batch
    trl, packed     the same with its packing (best fit, padding-free)
    ossia           train.share_prefixes: off
    ossia, shared   train.share_prefixes: on

TRL differs from its defaults in four points, because the comparison is impossible otherwise:

* max_length cuts nothing off.
* The loss has no term for the router.
* The batch is as large as eager attention allows in 12 GB, and at most the default of 8. On a CPU, gpt-oss has only
  eager attention.
* Experts get LoRA through target_parameters, as PEFT documents it.

TRL trains a sample of the examples (with packing, of the packs), evenly spaced by length. The time of its epoch is
extrapolated by tokens, padding included. The factor is in the results, beside the ratios. Both sides of Ossia train the
whole epoch. Every side computes one example before the clock starts. A step holds whole conversations in the order of
the file, which is the best case for sharing. The benchmark takes about 25 minutes on two cores.

`python -m benchmarks.trees --width small` tries everything with a small model of the same structure and short texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.train_step import Peak
from benchmarks.tree_sets import SETS, write_sets
from ossia.checkpoint.layout import Shape

RANK, RATE = 16, 1e-4
TOKENS_PER_MICRO_BATCH = 8192
SIDES = ("trl", "trl, packed", "ossia", "ossia, shared")
ATTENTION_MEMORY, ATTENTION_COPIES = 12e9, 6
"""The bytes that the peer's attention may take, and the number of score matrices that it holds at a time."""
TARGETS = {
    "chats": {"unshared": 2.5, "trl": 6.0},
    "agents": {"unshared": 5.0, "trl": 12.0},
    "loops": {"unshared": None, "trl": 4.0},
    "single": {"unshared": 0.97, "trl": 2.5},
}
"""The wanted factors of speed with sharing. Against no sharing, the factor should also be at least 0.85 of the token
ratio."""


@dataclass(frozen=True)
class Width:
    """The model, the text lengths and the sample of the peer that belong together."""

    shape: Shape
    scale: float
    """Factor on the lengths of texts."""
    sample: int
    """The least number of tokens that the peer trains."""


WIDTHS = {
    "slice": Width(Shape(layers=2, vocabulary=16_768), 1.0, 3000),
    "small": Width(
        Shape(
            layers=2, hidden=64, intermediate=96, experts=8, heads=8, kv_heads=2, head_dim=16, vocabulary=16_768,
            sliding_window=16,
        ),
        0.1,
        500,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A training example. The interface requires `channels`. They do not change the results."""

    ids: list[int]
    weights: list[float]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def channels(self) -> list[str | None]:
        return [None] * len(self.ids)


def run(cuda: bool, width: str = "slice", sets: Sequence[str] = tuple(SETS)) -> dict[str, object]:
    """Return results for each set and side.

    They are the seconds of an epoch, the computed tokens, the losses and the peak memory. Each set has its ratios.
    """
    from ossia.checkpoint.synthetic import write_synthetic

    chosen, results = WIDTHS[width], dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        path = write_synthetic(Path(folder) / "model", chosen.shape)
        files = write_sets(Path(folder), chosen.shape.vocabulary, chosen.scale)
        for name in sets:
            sides = {side: _process(side, name, path, files[name], width, cuda) for side in SIDES}
            results[name] = {**sides, **_compared(name, sides)}
    return {
        "unit": "seconds, tokens, bytes",
        "device": "cuda" if cuda else "cpu",
        "width": width,
        "dtype": "bfloat16",
        "hidden": chosen.shape.hidden,
        "layers": chosen.shape.layers,
        "experts": chosen.shape.experts,
        "vocabulary": chosen.shape.vocabulary,
        "rank": RANK,
        "tokens_per_micro_batch": TOKENS_PER_MICRO_BATCH,
        **results,
    }


def _compared(name: str, sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    shared, unshared = sides["ossia, shared"], sides["ossia"]
    tokens = unshared["tokens"] / shared["tokens"]
    gain = unshared["seconds"] / shared["seconds"]
    peers = {
        side: round(found["seconds"] / shared["seconds"], 2)
        for side, found in sides.items()
        if side.startswith("trl") and "failed" not in found
    }
    losses = zip(unshared["losses"], shared["losses"], strict=True)
    ratios = {
        "token ratio": round(tokens, 3),
        "against unshared": round(gain, 3),
        "target against unshared": TARGETS[name]["unshared"],
        "share of the token ratio": round(gain / tokens, 3),
        "target share of the token ratio": 0.85,
        "against trl": peers,
        "target against trl": TARGETS[name]["trl"],
        "trl's rows per batch and extrapolation": {
            side: [found["batch"], found["extrapolated"]] for side, found in sides.items() if "batch" in found
        },
        "memory against unshared": round(shared["peak_memory"] / unshared["peak_memory"], 3),
        "largest difference of losses, relative": max(abs(a - b) / abs(a) for a, b in losses),
        "loss of the sample, trl and ossia": [*sides["trl"].get("losses", ["failed"])[:1], unshared["sample_loss"]],
    }
    if "peak_anonymous" in shared:
        anonymous = shared["peak_anonymous"] / unshared["peak_anonymous"]
        ratios["anonymous memory against unshared"] = round(anonymous, 3)
    print(json.dumps({name: ratios}), file=sys.stderr, flush=True)
    return {"ratios": ratios}


def _process(side: str, name: str, path: Path, file: Path, width: str, cuda: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.trees", "--side", side, "--sets", name, "--width", width]
    command += ["--model", str(path), "--examples", str(file), *(["--cuda"] if cuda else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=side.startswith("ossia"))
    if done.returncode:  # the peer may run out of memory
        print(f"{name}, {side}: exit code {done.returncode}", file=sys.stderr, flush=True)
        return {"failed": f"exit code {done.returncode}"}
    print(f"{name}, {side}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(side: str, name: str, path: Path, file: Path, width: str, device: str) -> dict[str, Any]:
    """Return the figures of one side on one set, measured in this process."""
    import torch

    torch.manual_seed(0)
    with file.open(encoding="utf-8") as lines:
        rows = [Row(**json.loads(line)) for line in lines]
    peak = Peak(device)
    if side.startswith("ossia"):
        found = _ossia(rows, SETS[name], path, WIDTHS[width], device, share="shared" in side)
    else:
        found = _trl(rows, path, WIDTHS[width], device, packing="packed" in side)
    return {**found, **peak.found()}


def sampled(rows: Sequence[Any], tokens: int, length: Callable[[Any], int] = len) -> list[int]:
    """Return the indices of the fewest rows, evenly spaced by length, that have at least `tokens` tokens.

    The indices are in the order of the rows' lengths. If all rows have fewer tokens, all indices are returned.
    """
    order = sorted(range(len(rows)), key=lambda index: length(rows[index]))
    for count in range(1, len(rows) + 1):
        chosen = [order[(2 * number + 1) * len(rows) // (2 * count)] for number in range(count)]
        if sum(length(rows[index]) for index in chosen) >= tokens:
            return chosen
    return order


def _ossia(rows: Sequence[Row], per_step: int, path: Path, width: Width, device: str, share: bool) -> dict[str, Any]:
    import torch

    from ossia.adapters.apply import attach_adapter
    from ossia.model.load import load_model
    from ossia.train.steps import Collator

    base = load_model(path, dtype="bfloat16", device=device)
    model = attach_adapter(base, rank=RANK, expert_rank=RANK, alpha=RANK, expert_alpha=RANK).train()
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    collate = Collator(TOKENS_PER_MICRO_BATCH, share)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, fused=True)

    def micro_batches_of(examples: Sequence[Row]) -> tuple[list[dict[str, Any]], float]:
        made = collate(examples)["micro_batches"]
        micro_batches = [{key: value.to(device) for key, value in inputs.items()} for inputs in made]
        return micro_batches, sum(b["weights"].sum().item() for b in micro_batches)

    def losses_of(examples: Sequence[Row], backward: bool) -> float:
        micro_batches, denominator = micro_batches_of(examples)
        total = 0.0
        for inputs in micro_batches:
            loss = model(**inputs, denominator=denominator).loss
            if backward:
                loss.backward()
            total += loss.item()
        return total

    with torch.no_grad():
        sample_loss = losses_of([rows[index] for index in sampled(rows, width.sample)], backward=False)
    losses_of(rows[:1], backward=True)
    optimiser.zero_grad(set_to_none=True)
    losses, tokens, count = [], 0, 0
    began = time.perf_counter()
    for start in range(0, len(rows), per_step):
        step = rows[start : start + per_step]
        losses.append(losses_of(step, backward=True))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    for start in range(0, len(rows), per_step):
        micro_batches, _ = micro_batches_of(rows[start : start + per_step])
        tokens, count = tokens + sum(p["input_ids"].numel() for p in micro_batches), count + len(micro_batches)
    return {
        "seconds": round(seconds, 3),
        "examples": len(rows),
        "example_tokens": sum(map(len, rows)),
        "tokens": tokens,
        "micro_batches": count,
        "losses": losses,
        "sample_loss": sample_loss,
    }


def _trl(rows: Sequence[Row], path: Path, width: Width, device: str, packing: bool) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    longest = max(map(len, rows))
    batch = 1 if packing else _batch(longest, width.shape.heads)
    sample = sampled(rows, width.sample)

    class Clock(TrainerCallback):  # type: ignore[misc]
        seconds = began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - self.began

    def trainer(examples: Sequence[Row], model: Any, peft_config: Any, **settings: Any) -> Any:
        columns = {
            "input_ids": [row.ids for row in examples],
            "labels": [
                [id if weight else -100 for id, weight in zip(row.ids, row.weights, strict=True)] for row in examples
            ],
        }
        arguments = SFTConfig(
            output_dir=tempfile.mkdtemp(), max_length=longest if packing else None, packing=packing,
            per_device_train_batch_size=batch, router_aux_loss_coef=0.0, num_train_epochs=1, learning_rate=RATE,
            report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=device == "cpu",
            dataloader_pin_memory=device != "cpu", **settings,
        )  # fmt: skip
        return SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=_tokenizer(),
            peft_config=peft_config, callbacks=[clock],
        )  # fmt: skip

    clock = Clock()
    model, config = _peer(path, device)
    whole = trainer(rows, model, config)  # its loader gives the tokens of an epoch
    epoch = _loaded(whole.get_train_dataloader())
    if packing:
        packs = list(whole.train_dataset["input_ids"])
        chosen = sampled(packs, width.sample)
        whole.train_dataset = whole.train_dataset.select(chosen)
    else:
        chosen = sample
        whole.train_dataset = whole.train_dataset.select(chosen)
    whole.args.gradient_accumulation_steps = -(-len(chosen) // batch)
    whole.accelerator.gradient_accumulation_steps = whole.args.gradient_accumulation_steps
    trained = _loaded(whole.get_train_dataloader())
    _warm_up(whole.model, rows[0].ids, device)
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    return {
        "seconds": round(clock.seconds * epoch["computed"] / trained["computed"], 3),
        "measured_seconds": round(clock.seconds, 3),
        "extrapolated": round(epoch["computed"] / trained["computed"], 3),
        "examples": len(rows),
        "example_tokens": sum(map(len, rows)),
        "tokens": epoch["computed"],
        "padding": round(1 - epoch["real"] / epoch["computed"], 4),
        "sampled": len(chosen),
        "sampled_tokens": trained["computed"],
        "batch": batch,
        "packing": packing,
        "losses": losses,
    }


def _batch(longest: int, heads: int) -> int:
    """Return TRL's default of 8 rows, or fewer if the bfloat16 scores of eager attention would not fit."""
    one = 2 * ATTENTION_COPIES * heads * longest**2
    return next((rows for rows in (8, 4, 2) if rows * one <= ATTENTION_MEMORY), 1)


def _loaded(batches: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Return the number of tokens that go through the model in an epoch, with padding and without."""
    computed = real = 0
    for inputs in batches:
        computed += inputs["input_ids"].numel()
        mask = inputs.get("attention_mask")
        real += inputs["input_ids"].numel() if mask is None else int(mask.sum())
    return {"computed": computed, "real": real}


def _warm_up(model: Any, ids: list[int], device: str) -> None:
    import torch

    batch = torch.tensor([ids], device=device)
    model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


def _peer(path: Path, device: str) -> tuple[Any, Any]:
    """Return the model and the LoRA configuration of OpenAI's and PEFT's guides, with LoRA on every expert."""
    import torch
    from peft import LoraConfig
    from transformers import GptOssForCausalLM, Mxfp4Config

    base = GptOssForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, attn_implementation="eager", use_cache=False,
        quantization_config=Mxfp4Config(dequantize=True),  # packed experts (package `kernels`) have no backward
    )  # fmt: skip
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], task_type="CAUSAL_LM",
    )  # fmt: skip
    return base.to(device), config


def _tokenizer() -> Any:
    """Return a tokenizer that can only pad. The texts are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")


def main() -> None:
    """Run the benchmark and print its JSON. With `--side`, measure one side in this process instead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=WIDTHS, default="slice")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        device = "cuda" if asked.cuda else "cpu"
        found = _measure(asked.side, asked.sets[0], asked.model, asked.examples, asked.width, device)
        print(json.dumps(found))
    else:
        print(json.dumps(run(asked.cuda, asked.width, asked.sets), indent=2))


if __name__ == "__main__":
    main()
