"""Stage 3: a model and compiled examples in, checkpoints of an adapter out.

supervised.py   supervised fine-tuning: `train(recipe, run, examples, validation)`, an objective and its session
session.py      a run, a recipe and any objective -> checkpoints and events: `run_session(recipe, run, objective)`
objective.py    what a session asks of an objective: data, micro-batches, loss, what validation measures
claim.py        one process at a time trains in a run, on the data and the base that the run began with
building.py     the base with its adapter, as the recipe wants it trained
steps.py        examples -> steps -> micro-batches (flat batches bounded by tokens)
trainer.py      transformers' Trainer with an objective's loss, Ossia's checkpoint format, evaluation and order
arguments.py    a recipe in the terms of Trainer: its arguments, its optimisers
checkpoints.py  checkpoint folders: atomic, pruned, best remembered
callbacks.py    what happens between steps: events, samples, early stopping, interruption
routing.py      what the routers choose, and the load-balancing loss; health.py reports on them
nonfinite.py    a stop with a name when a loss or a gradient is not finite
distributed.py  what the processes of one job agree on; fsdp.py shards a model among them
scratch.py      a tiny gpt-oss from scratch: the demo's base model
"""
