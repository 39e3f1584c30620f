"""Stage 2: estimates the memory, disk and time that training needs, before anything is spent.

    inputs      the inputs of a plan: the model's dimensions, this machine, and a summary of the data
    memory      bytes at the peak of training, and bytes on disk
    speed       the speed of this machine, measured in a second or two
    work        steps, micro-batches, arithmetic and seconds of a recipe
    estimate    the plan of a recipe on a machine, with a verdict and changes that make it fit
    peak        the memory that this process takes, measured for comparison with an estimate
    doctor      checks of this machine

`estimate` computes from the recipe, the model's dimensions and the summary of the data. `Machine.here` and
`speed.measure` examine this machine. Torch is loaded only for measurements, GPUs and the head of a small model.
"""

from __future__ import annotations

from ossia.plan.estimate import Plan, estimate
from ossia.plan.inputs import Examples, FoundModel, Machine, find_model
from ossia.plan.memory import Need

__all__ = ["Examples", "FoundModel", "Machine", "Need", "Plan", "estimate", "find_model"]
