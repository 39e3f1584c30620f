"""LoRA adapters in PEFT's format on disk. Only this package reads and refuses them, for all stages and chat.

    config    adapter_config.json, and the adapters that Ossia refuses
    layout    the weights that an adapter can change, and the place of their updates on disk
    read      an adapter's file as one update per tensor of the checkpoint
    layers    LoRA layers for packed experts, the router and linear modules
    apply     adapters on a model: new ones, loading and saving
    identity  identity.json of a saved adapter: digests of its files, and its base
    trust     identity.json of a run, and the check that every command makes before it uses an adapter

`config`, `layout`, `identity` and `trust` import neither torch nor PEFT.
"""
