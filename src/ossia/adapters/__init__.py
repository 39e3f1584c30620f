"""LoRA adapters: PEFT's format on disk, read and refused in one place for training, chat, planning and export.

config   adapter_config.json, and what Ossia refuses           (neither torch nor PEFT)
layout   what an adapter can change, and where it lies on disk (neither torch nor PEFT)
read     an adapter's file as one update per tensor of the checkpoint
layers   LoRA layers for packed experts, the router and linear modules
apply    adapters on a model: new ones, and those from disk; saving
"""
