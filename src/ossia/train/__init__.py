"""Stage 3: a model and compiled examples in, checkpoints of an adapter out.

supervised.py   the stage itself: `train(recipe, run, examples, validation)`
steps.py        examples -> steps -> micro-batches (flat batches bounded by tokens)
trainer.py      transformers' Trainer with Ossia's batch, loss, checkpoint format, evaluation and order of examples
arguments.py    a recipe in the terms of Trainer: its arguments, its optimisers
checkpoints.py  checkpoint folders: atomic, pruned, best remembered
callbacks.py    what happens between steps: events, samples, early stopping, interruption
routing.py      what the routers choose, and the load-balancing loss; health.py reports on them
nonfinite.py    a stop with a name when a loss or a gradient is not finite
distributed.py  what the processes of one job agree on; fsdp.py shards a model among them
scratch.py      a tiny gpt-oss from scratch: the demo's base model
"""
