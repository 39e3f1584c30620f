"""Checkpoints on disk and on the hub.

layout      what a checkpoint consists of: the architecture's figures, config.json, every tensor; no torch
reader      reading a checkpoint, its configuration and the files beside its weights
writer      writing a checkpoint whose tensors are known beforehand
original    the layout of OpenAI's reference code, read like the published one
hub         fetching the published weights
locate      where a model and its tokenizer are
tiny        small random checkpoints with every feature of the architecture
synthetic   random checkpoints of the published size
compact     a tiny checkpoint in one small file
"""
