"""Generation: engines behind one protocol of token ids.

    engine    requests, token streams, completions and the protocol of engines
    sampling  the choice of the next token
    native    the engine that runs in this process
    subject   a run, checkpoint, adapter or model, found by its reference, and the engine for it
    session   a conversation with an engine

Importing this package does not import torch. Usage:

    from ossia.generate.subject import open_subject
    engine = open_subject("last").engine()
"""
