"""Ossia: fine-tune, evaluate, chat with and ship OpenAI's gpt-oss models on the machine you have.

    import ossia

    plan = ossia.plan("tiny-demo")                          # what it needs, before anything is spent
    result = ossia.train("tiny-demo")                       # a run: checkpoints of a LoRA adapter
    report = ossia.evaluate(result.run.id)                  # against its base, on held-out questions
    export = ossia.export(result.run.id, to="hf")           # a checkpoint that other programs load
    model, tokenizer = ossia.load("openai/gpt-oss-20b")     # a transformers model, experts in four bits

Importing this imports neither torch nor transformers; using it does. The functions are those of `ossia.workflows`.
`plan`, `train`, `evaluate` and `export` are also the packages of these stages: the packages can be called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ossia.model.load import load
    from ossia.workflows.chat import chat
    from ossia.workflows.data import check
    from ossia.workflows.evaluate import evaluate
    from ossia.workflows.export import export
    from ossia.workflows.models import fetch
    from ossia.workflows.plan import plan
    from ossia.workflows.rehearse import rehearse
    from ossia.workflows.train import train

__all__ = ["chat", "check", "evaluate", "export", "fetch", "load", "plan", "rehearse", "train"]

_FUNCTIONS = {
    "chat": "ossia.workflows.chat",
    "check": "ossia.workflows.data",
    "fetch": "ossia.workflows.models",
    "load": "ossia.model.load",
    "rehearse": "ossia.workflows.rehearse",
}
"""Public function -> the module that defines it."""
_STAGES = ("evaluate", "export", "plan", "train")
"""Public functions that have the name of a package of Ossia."""


class _Stage(ModuleType):
    """The package of a stage, which is called as the workflow of its name.

    Importing a package sets it as an attribute of its parent, so a function of its name would be lost. This way the
    attribute is one object whatever was imported before.
    """

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._workflow()(*args, **settings)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._workflow())

    def _workflow(self) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(f"ossia.workflows.{name}"), name)


class _Package(ModuleType):
    """Ossia itself, which makes the packages of stages callable when the import system hands them to it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STAGES and type(value) is ModuleType:
            value.__class__ = _Stage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return importlib.import_module(f"ossia.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'ossia' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
