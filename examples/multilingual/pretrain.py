"""Make base.safetensors, the demo's base model: a tiny gpt-oss that solves the problems and always thinks in English.

    python examples/multilingual/pretrain.py            # about fifteen minutes on one core

The script pre-trains on 30,000 generated rows and compresses the checkpoint into one file of about 2 MB. On one
machine, every run gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402  (a module beside this file, not of a package)

from ossia.checkpoint.compact import compress  # noqa: E402
from ossia.checkpoint.layout import Shape  # noqa: E402
from ossia.config import DataSection  # noqa: E402
from ossia.data.examples import examples_of  # noqa: E402
from ossia.data.formats import to_conversation  # noqa: E402
from ossia.errors import raise_errors  # noqa: E402
from ossia.harmony.tokenizer.vocabulary import Vocabulary  # noqa: E402
from ossia.train.scratch import ScratchSettings, pretrain  # noqa: E402

SHAPE = Shape(layers=4, hidden=128, intermediate=128, experts=8, heads=4, kv_heads=2, head_dim=32)
SETTINGS = ScratchSettings(tokens_per_step=1024, learning_rate=3e-3, warmup_steps=100)
ROWS = 30_000


def main() -> None:
    """Generate the rows, pre-train the model and compress its checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--out", type=Path, default=HERE / "base.safetensors")
    wanted = parser.parse_args()
    vocabulary, settings = Vocabulary.load(), DataSection(format="multilingual-thinking")

    def compiled(rows: list[generate.Row]) -> list:
        conversations = (to_conversation(row, settings, f"row {i}", raise_errors) for i, row in enumerate(rows))
        return [example for c in conversations for example in examples_of(c, vocabulary, settings)]

    began = time.monotonic()

    def show(step: int, steps: int, loss: float) -> None:
        if step % 50 == 0 or step == steps:
            print(
                f"step {step}/{steps}  loss {loss:.4f}  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
            )

    examples = compiled(generate.pretraining_rows(wanted.rows, 0))
    reserve = compiled(generate.training_rows(generate.TRAIN_ROWS, 1))
    with tempfile.TemporaryDirectory() as folder:
        pretrain(examples, SHAPE, Path(folder) / "base", SETTINGS, reserve=reserve, on_step=show)
        compress(Path(folder) / "base", wanted.out)
    print(wanted.out)


if __name__ == "__main__":
    main()
