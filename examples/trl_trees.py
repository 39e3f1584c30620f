"""TRL's SFTTrainer on prefix trees: what the rows of a batch begin with in common is computed once.

    python examples/trl_trees.py MODEL ROWS.jsonl ADAPTER_FOLDER [STEPS]

Rows are TRL's own, one per assistant turn: {"prompt": [messages], "completion": [messages]}. The turns of a
conversation follow each other in the file, and batches are taken in its order.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import ossia
from ossia.model import lora
from ossia.train.steps import TreeCollator


class TreeTrainer(SFTTrainer):
    def _get_num_items_in_batch(self, batches, device):
        """The step's trained tokens, over all its batches and processes."""
        return self.accelerator.gather(sum(batch["weights"].sum() for batch in batches).to(device)).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model(**inputs, denominator=num_items_in_batch).loss  # in chunks: no logits for TRL's metrics
        return loss * self.accelerator.num_processes  # whose gradients are going to be averaged


def main(path: str, rows: str, folder: str, steps: str = "20") -> None:
    model, tokenizer = ossia.load(path)
    settings = SFTConfig(
        output_dir=folder, max_steps=int(steps), per_device_train_batch_size=8, train_sampling_strategy="sequential",
        max_length=None,  # TRL would cut rows to 1,024 tokens
        learning_rate=2e-3, logging_steps=1, bf16=False, router_aux_loss_coef=0.0, save_strategy="no", report_to="none",
    )  # fmt: skip
    data = load_dataset("json", data_files=rows, split="train")
    adapted = lora.attach(model, rank=16, expert_rank=8)
    TreeTrainer(adapted, settings, TreeCollator(), train_dataset=data, processing_class=tokenizer).train()
    Path(folder).mkdir(parents=True, exist_ok=True)
    lora.save(adapted, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
