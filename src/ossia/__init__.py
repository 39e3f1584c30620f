"""Ossia: fine-tune, evaluate, chat with and ship OpenAI's gpt-oss models on the machine you have.

    import ossia
    model, tokenizer = ossia.load("openai/gpt-oss-20b")     # a transformers model, experts in four bits

Importing this imports neither torch nor transformers; using it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ossia.model.load import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from ossia.model.load import load

        return load
    raise AttributeError(f"module 'ossia' has no attribute {name!r}")
