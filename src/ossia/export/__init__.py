"""Stage 5: a tuned model that other programs load, and a report of what the writing did to it.

No torch is imported here, so that asking for help costs nothing.
"""

from __future__ import annotations

from typing import Literal

Target = Literal["hf", "adapter"]
Experts = Literal["auto", "bf16", "mxfp4"]
