"""Workflows: each stage as one function with typed arguments, a result and an event callback.

    data              checks, repairs, reads and counts conversations
    plan              estimates the memory, time and disk of a recipe, and examines the machine
    rehearse          measures a few real training steps on a full-size model with random weights
    rehearsal_disk    the folders of a rehearsal: the random model, which stays, and the run, which is removed
    train             fine-tunes: a new run of a recipe, or the continuation of a run
    evaluate          measures a run, an adapter or a model on held-out questions
    chat              opens a conversation with a tuned model, its base, or both
    export            writes a tuned model for other programs
    models            downloads published models, and makes tiny and synthetic ones
    harmony           converts chat requests to Harmony tokens, and Harmony tokens to messages

The command line calls these functions, and a server or a studio can call them too. `ossia.evaluate` and the other
public functions are the same functions. Only workflows combine several stages. Torch is imported when a function needs
it.
"""
