"""Plan: memory, disk and time before anything is spent.

`estimate` is arithmetic on a recipe, the model's figures and a summary of the data; `Machine.here` and `speed.measure`
say what this machine has. Nothing here loads torch until something is measured.
"""

from __future__ import annotations

from ossia.plan.estimate import Plan, estimate
from ossia.plan.machine import Machine
from ossia.plan.memory import Line
from ossia.plan.model import Found, find_model
from ossia.plan.work import Examples

__all__ = ["Examples", "Found", "Line", "Machine", "Plan", "estimate", "find_model"]
