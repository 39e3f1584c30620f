"""Ossia's four-bit model in TRL's SFTTrainer: python examples/trl_sft.py MODEL ROWS.jsonl ADAPTER_FOLDER [STEPS]

Rows have TRL's own format: {"prompt": [messages], "completion": [messages]}. TRL, like Ossia, projects to the
vocabulary in tiles, so full logits never exist.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import ossia
from ossia.adapters.apply import attach_adapter, save_adapter


def main(path: str, rows: str, folder: str, steps: str = "20") -> None:
    """Train an adapter with TRL and save it."""
    model, tokenizer = ossia.load(path)
    settings = SFTConfig(
        output_dir=folder,
        max_steps=int(steps),
        per_device_train_batch_size=4,
        learning_rate=2e-3,
        logging_steps=1,
        bf16=False,  # the model has its compute type already
        router_aux_loss_coef=0.0,  # the router is frozen; the model's own coefficient is for pre-training
        save_strategy="no",
        report_to="none",
        max_length=None,  # TRL would cut rows to 1,024 tokens
    )
    data = load_dataset("json", data_files=rows, split="train")
    adapted = attach_adapter(model, rank=16, expert_rank=8)
    SFTTrainer(adapted, settings, train_dataset=data, processing_class=tokenizer).train()
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_adapter(adapted, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
