"""Stage 3: a model and compiled examples in, checkpoints of an adapter out.

steps.py        examples -> steps -> micro-batches (flat batches bounded by tokens)
trainer.py      transformers' Trainer with Ossia's batch, loss, checkpoint format and evaluation
checkpoints.py  checkpoint folders: atomic, pruned, best remembered
callbacks.py    what happens between steps: events, samples, early stopping, interruption
distributed.py  what the processes of one job agree on
scratch.py      a tiny gpt-oss from scratch: the demo's base model
supervised.py   the stage itself: `train(recipe, run, examples, validation)`
"""
