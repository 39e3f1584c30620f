"""Checkpoints on disk and on the hub.

    layout       the contents of a checkpoint: hyperparameters, config.json, every tensor
    reader       reading a checkpoint, its configuration and the files beside its weights
    writer       writing a checkpoint whose tensors are known beforehand
    original     the layout of OpenAI's reference code, read like the published one
    identity     the SHA-256 of every tensor of a base model, computed once for a file
    hub          fetching the published weights
    locate       finding the folder of a model and of its tokenizer
    tiny         small random checkpoints with every feature of the architecture
    synthetic    random checkpoints of the published size
    compact      a tiny checkpoint in one small file

Only `tiny`, `synthetic` and `compact` import torch when they are imported.
"""
