"""Plan: memory, disk and time before anything is spent.

`estimate` is arithmetic on a recipe, the model's figures and a summary of the data; `Machine.here` and `speed.measure`
say what this machine has. Nothing here loads torch until something is measured.
"""

from __future__ import annotations

from ossia.plan.estimate import Plan, estimate
from ossia.plan.inputs import Examples, FoundModel, Machine, find_model
from ossia.plan.memory import Need

__all__ = ["Examples", "FoundModel", "Machine", "Need", "Plan", "estimate", "find_model"]
