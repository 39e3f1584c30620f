"""Tests of Ossia's model in TRL: the example scripts as a user runs them, and TRL's batches."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ossia
from ossia.adapters import apply as lora
from ossia.checkpoint.tiny import MICRO, TINY, write_tiny
from ossia.config import DataSection
from ossia.data.prepare import prepare
from ossia.harmony.tokenizer.vocabulary import Vocabulary
from ossia.model.batch import from_rows
from ossia.model.load import load_model
from ossia.train.steps import TreeCollator

SCRIPT = Path(__file__).parents[2] / "examples" / "trl_sft.py"
TREES = SCRIPT.with_name("trl_trees.py")


def test_the_example_has_ossia_s_loss_learns_and_writes_an_adapter(tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 40
    base = write_tiny(tmp_path / "tiny", TINY.replace(layers=2), seed=0)
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for n in (2, 30):
            prompt, completion = f"What is {n} and {n}?", f"Put together, that is {2 * n}."
            row = {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": completion}],
            }
            file.write(json.dumps(row) + "\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, str(SCRIPT), str(base), str(rows), str(tmp_path / "adapter"), "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", done.stdout)]
    assert len(losses) == 3
    # The judge is Ossia's loss on its own tokens and weights of the rows. A new adapter does not change the model.
    section = DataSection(train=[str(rows)], validation_share=0.0)
    prepared = prepare(section, Vocabulary.load(base), 0)
    model, _ = ossia.load(base)
    own = model(**from_rows((example.ids, example.weights) for example in prepared.train).inputs()).loss.item()
    assert losses[0] == pytest.approx(own, rel=1e-3)  # TRL prints four digits
    assert losses[2] < losses[1] < losses[0]
    lora.load_adapter(load_model(base), tmp_path / "adapter")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("padding_free", [False, True])
def test_trl_s_batches_give_the_loss_and_gradients_of_separate_rows(tmp_path: Path, padding_free: bool) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    model = load_model(write_tiny(tmp_path / "micro", MICRO, seed=0), dtype="float32", device="cpu")
    adapted = lora.attach_adapter(model, rank=4, expert_rank=2)
    for _, parameter in lora.trainable_parameters(adapted):
        torch.nn.init.normal_(parameter, std=0.05)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, MICRO.vocabulary, (length,), generator=generator).tolist() for length in (40, 9, 23)]
    labels = [[-100] * 4 + ids[4:] for ids in rows]
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)
    given = [{"input_ids": ids, "labels": wanted} for ids, wanted in zip(rows, labels, strict=True)]
    batch = {name: value for name, value in collator(copy.deepcopy(given)).items() if name != "seq_idx"}
    flat = from_rows((ids, [0.0] * 4 + [1.0] * (len(ids) - 4)) for ids in rows)
    parameters = [parameter for _, parameter in lora.trainable_parameters(adapted)]

    def gradients(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])

    own = adapted(**flat.inputs()).loss
    wanted = gradients(own)
    usual = adapted(**batch).loss  # as transformers' Trainer calls a model
    add_fused_lm_head(adapted.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    fused = adapted(**batch, fused_lm_head=True).loss  # as TRL's SFTTrainer does
    for loss in (usual, fused):
        assert loss.item() == pytest.approx(own.item(), abs=1e-5)
        assert (gradients(loss) - wanted).norm() < 1e-4 * wanted.norm()


def test_trees_in_trl_have_ossia_s_loss(tmp_path: Path) -> None:
    assert len(TREES.read_text().splitlines()) <= 40
    base = write_tiny(tmp_path / "tiny", TINY.replace(layers=2), seed=0)
    rows = tmp_path / "rows.jsonl"
    history: list[dict[str, str]] = []
    with rows.open("w") as file:
        for n in (2, 30, 7):
            asked = [*history, {"role": "user", "content": f"What is {n} and {n}?"}]
            answer = {"role": "assistant", "content": f"Put together, that is {2 * n}."}
            file.write(json.dumps({"prompt": asked, "completion": [answer]}) + "\n")
            history = [*asked, answer]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, str(TREES), str(base), str(rows), str(tmp_path / "adapter"), "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", done.stdout)]
    section = DataSection(train=[str(rows)], validation_share=0.0)
    prepared = prepare(section, Vocabulary.load(base), 0)
    model, _ = ossia.load(base)
    own = model(**from_rows((example.ids, example.weights) for example in prepared.train).inputs()).loss.item()
    assert losses[0] == pytest.approx(own, rel=1e-3)
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.filterwarnings("default")
def test_trees_in_trl_weigh_batches_of_a_step_by_their_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two accumulated batches of one row each have the loss of one batch of two rows."""
    from datasets import Dataset
    from trl import SFTConfig

    monkeypatch.syspath_prepend(str(TREES.parent))
    trainer_class = importlib.import_module("trl_trees").TreeTrainer
    base = write_tiny(tmp_path / "tiny", TINY.replace(layers=2), seed=0)
    rows = [{"input_ids": [*range(5, 5 + n)], "labels": [-100, *range(6, 5 + n)]} for n in (30, 6)]
    losses = []
    for batch in (1, 2):
        model, tokenizer = ossia.load(base)
        settings = SFTConfig(
            output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=batch, max_length=None,
            gradient_accumulation_steps=2 // batch, train_sampling_strategy="sequential", bf16=False, use_cpu=True,
            router_aux_loss_coef=0.0, save_strategy="no", report_to="none", logging_steps=1,
        )  # fmt: skip
        adapted = lora.attach_adapter(model, rank=4, expert_rank=2)
        data = Dataset.from_list(rows)
        trainer = trainer_class(adapted, settings, TreeCollator(), train_dataset=data, processing_class=tokenizer)
        trainer.train()
        losses.append(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with torch.no_grad():
        own = ossia.load(base)[0](**TreeCollator()(rows)).loss.item()
    assert losses[1] == pytest.approx(own, rel=1e-3)


def test_the_tree_collator_takes_labels_and_gives_the_loss_of_the_rows(tmp_path: Path) -> None:
    model = load_model(write_tiny(tmp_path / "micro", MICRO, seed=0), dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(0)
    trunk = torch.randint(1, MICRO.vocabulary, (30,), generator=generator).tolist()
    rows = []
    for n in range(4):
        ids = [*trunk[: 10 + 6 * n], *torch.randint(1, MICRO.vocabulary, (9,), generator=generator).tolist()]
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) - 5) + ids[-5:]})
    trees = TreeCollator()(rows)
    assert trees["input_ids"].numel() == 28 + 4 * 9 < TreeCollator(share=False)(rows)["input_ids"].numel()
    with torch.no_grad():
        losses = [model(**TreeCollator(share)(rows)).loss.item() for share in (True, False)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    with pytest.raises(ValueError, match="labels must repeat"):
        TreeCollator()([{"input_ids": [1, 2], "labels": [-100, 3]}])
