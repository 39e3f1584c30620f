"""Workflows: each stage as one function with typed arguments, a result and an event callback.

data            check, repair, read and count conversations
plan            say what a recipe needs in memory, time and disk; examine the machine
rehearse        measure a few real training steps on a full-size model with random weights
rehearsal_disk  the folders of a rehearsal: the random model, which stays, and the run, which is removed
train           fine-tune: a recipe becomes a run, or a run continues
evaluate        measure a run, an adapter or a model on held-out questions
chat            open a conversation with one or two answerers
export          write a tuned model for other programs
models          download published models, make tiny and synthetic ones
harmony         chat requests to Harmony tokens, and Harmony tokens to messages

A command line, a server and a studio call these; `ossia.evaluate` and the others are the same functions. Stages meet
here and nowhere else. No torch is imported before a function needs it.
"""
