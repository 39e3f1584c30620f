"""Build hook: compiles the optional native kernels where there is a C compiler (see src/ossia/kernels/cpu/build.py)."""

from __future__ import annotations

import runpy
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before a wheel or an editable installation is made. A failure to compile is told and does no harm."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        script = runpy.run_path(f"{self.root}/src/ossia/kernels/cpu/build.py")
        problem = script["compile_library"]()
        if problem is not None:
            self.app.display_warning(problem)
            return
        build_data["artifacts"].append("/src/ossia/kernels/cpu/native/libossia.so")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
