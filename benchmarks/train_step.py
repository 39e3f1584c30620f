"""A LoRA step on a slice of gpt-oss: Ossia on packed MXFP4 experts beside transformers + PEFT on bf16 experts.

The slice has two layers of the real width with all 32 experts and a vocabulary of 16,768. Rows have 512 tokens, and
every token is supervised. The rank is 16. A step is forward, backward and AdamW in bfloat16 without recompute.

Each side runs in its own process, on the same weights and rows, and reports its first loss. Ossia runs with the C
library and in plain torch. The peer runs with its default (grouped) experts and with eager experts. Its
`target_parameters` follow PEFT's documentation, its attention is eager, and it computes full logits.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTH, RANK = 512, 16
CASES = {"attention and experts": 1024, "attention": 2048}
"""For each case (the targets of LoRA), the number of tokens of a step."""
SIDES = ("ossia", "ossia, plain torch", "transformers+peft", "transformers+peft, eager experts")
WARM, STEPS = 1, 3
FEWER_STEPS = 1
"""The steps of the peer with eager experts, which takes minutes per step. It has no warm-up step."""


def run(cuda: bool) -> dict[str, object]:
    """Return results for each case and side.

    They are the median tokens per second, the share of the matmul rate, the peak memory in bytes and the first loss.
    """
    from ossia.checkpoint.layout import Shape
    from ossia.checkpoint.synthetic import write_synthetic
    from ossia.plan.work import flops_per_token

    shape = Shape(layers=2, vocabulary=16_768)
    flops = flops_per_token(shape, recompute=False)["training"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_synthetic(Path(folder) / "slice", shape)
        for case, tokens in CASES.items():
            sides = {side: _process(side, case, path, cuda) for side in SIDES if not (cuda and "plain" in side)}
            for side in sides.values():
                side["share of matmul rate"] = round(side["tokens_per_second"] * flops / side["matmul"], 3)
            peer = sides["transformers+peft"]
            ratios = {
                name: round(side["tokens_per_second"] / peer["tokens_per_second"], 2)
                for name, side in sides.items()
                if name.startswith("ossia")
            }
            memory = round(sides["ossia"]["peak_memory"] / peer["peak_memory"], 2)
            results[case] = {"tokens": tokens, **sides, "speed against peer": ratios, "memory against peer": memory}
    return {
        "unit": "tokens per second; operations per second; bytes",
        "device": "cuda" if cuda else "cpu",
        "dtype": "bfloat16",
        "hidden": shape.hidden,
        "layers": shape.layers,
        "experts": shape.experts,
        "vocabulary": shape.vocabulary,
        "rank": RANK,
        "flops per token": flops,
        **results,
    }


def _process(side: str, case: str, path: Path, cuda: bool) -> dict[str, Any]:
    environment = {**os.environ, "OSSIA_NATIVE": "0" if "plain" in side else "1"}
    command = [sys.executable, "-m", "benchmarks.train_step", side, case, str(path), "cuda" if cuda else "cpu"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{case}, {side}: {done.stdout.strip()}", file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(side: str, case: str, path: Path, device: str) -> dict[str, float]:
    """Return the figures of one side, measured in this process."""
    import torch

    torch.manual_seed(0)
    matmul = _matmul_rate(device)
    ids = torch.randint(16_768, (CASES[case] // LENGTH, LENGTH), generator=torch.Generator().manual_seed(0))
    peak = Peak(device)
    model, loss = (_ossia if side.startswith("ossia") else _peer)(side, case, path, ids, device)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    seconds, first = [], 0.0
    for step in range(FEWER_STEPS if "eager" in side else WARM + STEPS):
        began = time.perf_counter()
        value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        first = value.item() if step == 0 else first
    return {
        "tokens_per_second": round(CASES[case] / statistics.median(seconds[WARM:] or seconds), 1),
        "first_loss": round(first, 5),
        "matmul": round(matmul),
        **peak.found(),
    }


def _ossia(side: str, case: str, path: Path, ids: Any, device: str) -> tuple[Any, Callable[[], Any]]:
    from ossia.adapters.apply import attach_adapter
    from ossia.model.batch import from_rows
    from ossia.model.load import load_model

    model = attach_adapter(
        load_model(path, dtype="bfloat16", device=device),
        rank=RANK, expert_rank=RANK, alpha=RANK, expert_alpha=RANK, targets=case.split(" and "),
    )  # fmt: skip
    rows = [(row, [0.0] + [1.0] * (LENGTH - 1)) for row in ids.tolist()]
    inputs = {name: value.to(device) for name, value in from_rows(rows).inputs().items()}
    return model.train(), lambda: model(**inputs).loss


def _peer(side: str, case: str, path: Path, ids: Any, device: str) -> tuple[Any, Callable[[], Any]]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GptOssForCausalLM, Mxfp4Config

    kind: dict[str, Any] = {"experts_implementation": "eager"} if "eager" in side else {}
    kind["quantization_config"] = Mxfp4Config(dequantize=True)  # packed experts (package `kernels`) have no backward
    base = GptOssForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager", **kind)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if "experts" in case else None
    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], target_parameters=parameters
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base.to(device), config)
    batch = ids.to(device)
    return model.train(), lambda: model(input_ids=batch, labels=batch).loss


def _matmul_rate(device: str) -> float:
    """Return the operations per second of a large bfloat16 product, the best of 20 measurements."""
    import torch

    x, w = (torch.randn(*size, device=device).bfloat16() for size in ((1024, 2880), (5760, 2880)))
    best = 0.0
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(4):
            x @ w.T
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 8 * x.numel() * len(w) / (time.perf_counter() - began))
    return best


class Peak:
    """The peak memory of this process, in bytes.

    On a GPU it is torch's allocated memory. On a CPU it is the resident memory, and beside it the anonymous part, which
    a thread samples.
    """

    def __init__(self, device: str) -> None:
        self.device, self.anonymous = device, 0
        if device == "cpu":
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text().split("RssAnon:")
            if len(status) < 2:
                return
            self.anonymous = max(self.anonymous, 1024 * int(status[1].split()[0]))
            time.sleep(0.02)

    def found(self) -> dict[str, int]:
        """Return the peaks under the keys of the results."""
        import torch

        if self.device == "cuda":
            return {"peak_memory": torch.cuda.max_memory_allocated()}
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"peak_memory": resident, "peak_anonymous": self.anonymous}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])))
