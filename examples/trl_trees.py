"""TRL's SFTTrainer on prefix trees: the common prefixes of the rows in a batch are computed once.

    python examples/trl_trees.py MODEL ROWS.jsonl ADAPTER_FOLDER [STEPS]

Rows have TRL's format, one per assistant turn and in order: {"prompt": [messages], "completion": [messages]}.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import ossia
from ossia.adapters.apply import attach_adapter, save_adapter
from ossia.train.steps import TreeCollator


class TreeTrainer(SFTTrainer):  # the loss is a mean over the step's tokens in all processes, which average gradients
    def _get_num_items_in_batch(self, batches, device):
        return self.accelerator.gather(sum(batch["weights"].sum() for batch in batches).to(device)).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs, denominator=num_items_in_batch).loss * self.accelerator.num_processes


def main(path: str, rows: str, folder: str, steps: str = "20") -> None:
    model, tokenizer = ossia.load(path)
    settings = SFTConfig(
        folder, max_steps=int(steps), per_device_train_batch_size=8, max_length=None, bf16=False, learning_rate=2e-3,
        train_sampling_strategy="sequential", router_aux_loss_coef=0.0, save_strategy="no", report_to="none",
        logging_steps=1,
    )  # fmt: skip
    data, adapted = load_dataset("json", data_files=rows, split="train"), attach_adapter(model, rank=16, expert_rank=8)
    TreeTrainer(adapted, settings, TreeCollator(), train_dataset=data, processing_class=tokenizer).train()
    save_adapter(adapted, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
