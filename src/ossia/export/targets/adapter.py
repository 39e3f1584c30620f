"""The target `adapter`: the adapter as it was trained, in PEFT's layout, with a model card."""

from __future__ import annotations

import hashlib
import shutil

from ossia.export.targets import ExportJob, ExportTarget, TargetResult


def _write(job: ExportJob) -> TargetResult:
    from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
    from ossia.export.card import model_card

    digests = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(job.source.adapter / name, job.folder / name)
        with (job.folder / name).open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    (job.folder / "README.md").write_text(model_card(job.source, job.out.name, merged=False), encoding="utf-8")
    return TargetResult({"sha256": digests})


ADAPTER_TARGET = ExportTarget("adapter", "the adapter and a card", _write, is_model=False)
