"""The target `adapter`: the adapter as it was trained, in PEFT's layout, with a model card."""

from __future__ import annotations

import shutil
from typing import Any

from ossia.adapters import identity, trust
from ossia.export.targets import ExportJob, ExportTarget, TargetResult
from ossia.files import sha256_of
from ossia.generate.subject import rendering_of


def _write(job: ExportJob) -> TargetResult:
    from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
    from ossia.export.card import model_card

    digests = {}
    stored = identity.read_identity(job.source.adapter)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(job.source.adapter / name, job.folder / name)
        digests[name] = sha256_of(job.folder / name)
    (job.folder / "README.md").write_text(model_card(job.source, job.out.name, merged=False), encoding="utf-8")
    base = trust.base_of(job.source.base) if stored is None else stored["base"]
    facts: dict[str, Any] = {"rendering": rendering_of(job.source.subject.recipe.data)}
    identity.seal(job.folder, base, **facts, **({"run": job.source.run.id} if job.source.run else {}))
    return TargetResult({"sha256": digests})


ADAPTER_TARGET = ExportTarget("adapter", "the adapter and a card", _write, is_model=False)
