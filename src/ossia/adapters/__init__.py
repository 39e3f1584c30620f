"""LoRA adapters: configuration, layers, PEFT's format on disk, and putting one on a model."""
