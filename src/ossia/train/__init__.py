"""Stage 3: a model and compiled examples in, checkpoints of an adapter out.

steps.py        examples -> steps -> passes (flat batches bounded by tokens)
trainer.py      transformers' Trainer with Ossia's batch, loss, checkpoint format and evaluation
checkpoints.py  checkpoint folders: atomic, pruned, best remembered
callbacks.py    what happens between steps: events, samples, early stopping, interruption
supervised.py   the stage itself: `train(recipe, run, examples, validation)`
"""
