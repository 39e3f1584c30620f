"""Stage 3: trains an adapter on compiled examples and writes its checkpoints.

    supervised   supervised fine-tuning: `train(recipe, run, examples, validation)`
    session      `run_session(recipe, run, objective)`: trains towards any objective, with checkpoints and events
    objective    the interface of an objective: data, micro-batches, loss and validation metrics
    claim        the lock of a run, its record, and the checks when it is resumed
    building     the base model with its adapter, prepared for training as in the recipe
    steps        examples -> steps -> micro-batches (flat batches of at most so many tokens)
    trainer      transformers' Trainer with an objective's loss, and Ossia's checkpoints, evaluation and order
    arguments    Trainer's arguments and optimisers for a recipe
    checkpoints  checkpoint folders: written atomically, pruned, with a record of the best one
    room         waiting while the disk is full
    callbacks    actions between steps: events, samples, early stopping, interruption
    routing      the routers' choices of experts, and the load-balancing loss
    health       reports on the routers every `train.evaluate_every` steps, with a warning of collapse
    nonfinite    an error that names the layer when a loss or a gradient is not finite
    distributed  process rank and count, a value from the main process, and the end of a process
    fsdp         a model that is sharded among the processes of a job
    scratch      pre-training of a tiny gpt-oss from scratch, for the demo

To add an objective, write a subclass of `Objective` and call `run_session` with it.
"""
