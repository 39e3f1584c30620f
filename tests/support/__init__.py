"""Helpers of the tests: samples, judges and stand-ins.

    attention_samples   attention by its definition, and forests of segments
    export_samples      adapters and models of stock PEFT and transformers
    flash_fakes         stand-ins for torch's flash operators
    format_samples      the rows of examples/formats
    generate_fakes      engines with scripted answers
    harmony_bindings    Ossia behind the interface of openai-harmony's Rust extension
    harmony_chats       chats for the chat template
    harmony_samples     random conversations, and openai-harmony as their judge
    harmony_sdist       the source distribution of openai-harmony
    lora_samples        adapted models, and losses of stock PEFT
    original_samples    checkpoints in the layout of OpenAI's reference
    oss_harmony_judge   oss-harmony as a judge, in its own process
    prose               the sentences of docstrings, comments, messages and pages
    train_samples       examples to learn from, and recipes of short runs
    tree_samples        conversations as sets of sequences that share prefixes

Tests and proofs import them from here, never from a test.
"""
