"""Ossia: fine-tune, evaluate, chat with and export OpenAI's gpt-oss models on the machine you have.

    import ossia

    plan = ossia.plan("tiny-demo")                          # the memory, disk and time that training needs
    result = ossia.train("tiny-demo")                       # a run: checkpoints of a LoRA adapter
    report = ossia.evaluate(result.run.id)                  # the run compared with its base, on held-out questions
    export = ossia.export(result.run.id, to="hf")           # a checkpoint that other programs load
    model, tokenizer = ossia.load("openai/gpt-oss-20b")     # a transformers model, experts in four bits

Importing `ossia` imports neither torch nor transformers. The functions import them when they need them. The functions
are those of `ossia.workflows`, and `load` is that of `ossia.model`. `plan`, `train`, `evaluate` and `export` are also
the packages of these stages, and the packages are callable.

The modules and folders, lowest layer first:

    errors         exceptions with messages for users, and problems in the rows of data sets
    config         the settings of a recipe with their defaults and documentation
    files          cache folder, atomic writes, and free disk space
    hardware       processor, memory, disk and GPUs of this machine, and the device and dtype to use
    recipes/       recipes as YAML files, and the code that reads and writes them
    events         the events of a run, in its events.jsonl
    runs           run folders: created, found and listed
    harmony/       Harmony, the message format of gpt-oss: renderer, parser and tokenizer
    sequences/     training sequences: prefix trees, the order of steps, and shared prefixes
    kernels/       the computations that take most of the time, for each kind of device
    checkpoint/    checkpoints on disk and on the hub
    adapters/      LoRA adapters in PEFT's format
    model/         gpt-oss with its experts in four bits, on transformers' classes
    generate/      engines that generate tokens, behind one protocol
    data/          stage 1: from files to training examples
    plan/          stage 2: the memory, disk and time that training needs
    train/         stage 3: from a model and examples to checkpoints of an adapter
    evaluate/      stage 4: comparison of a tuned model with its base on held-out questions
    export/        stage 5: a tuned model in the formats of other programs
    workflows/     each stage as one function with typed arguments, a result and an event callback
    cli/           the commands of the terminal
    __main__       the entry point of the `ossia` command
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
"""Public functions with the same name as a package of Ossia."""


class _Stage(ModuleType):
    """The package of a stage, which can be called like the workflow of the same name.

    Importing a package sets it as an attribute of its parent, which would replace a function of the same name. With
    callable packages the attribute is the same object, whether or not the package was imported before.
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
    """The package `ossia`, which makes the packages of stages callable when the import system sets them on it."""

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
