"""The target `hf`: a checkpoint in the published layout, with the adapter merged in."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from ossia import hardware
from ossia.checkpoint import layout
from ossia.checkpoint.reader import copy_side_files, read_json
from ossia.export.targets import ExportJob, ExportTarget, TargetResult
from ossia.files import check_disk, write_json
from ossia.generate.subject import system_of
from ossia.harmony import chat_template

if TYPE_CHECKING:
    from ossia.export.rounding import Rounding
    from ossia.export.writers import WrittenTensors

BASE_TEMPLATE = "chat_template.base.jinja"
"""The template of the base model, which an export keeps where it is not Ossia's."""


def _write(job: ExportJob) -> TargetResult:
    from ossia.export import rounding, verify

    device = hardware.device().value
    chosen = rounding.choose_rounding(job.base, job.adapter, job.experts, device=device, progress=job.progress)
    written = _weights(job, chosen, device)
    revised = chosen.revised(written.survival)
    if revised != chosen:
        shutil.rmtree(job.folder)
        job.folder.mkdir()
        chosen, written = revised, _weights(job, revised, device)
    template = _side_files(job, chosen)
    with job.progress("verifying", _bytes(job, chosen)) as advance:
        counted = verify.check_bytes(job.folder, written, packed=chosen.packed, advance=advance)
    logits = verify.compare_logits(job.base.folder, job.source.adapter, job.folder)
    report: dict[str, Any] = {
        "experts": chosen.to_json(),
        "update": rounding.update_report(written.survival),
        "verified": {"bytes": counted, "logits": logits},
        "template": template,
        "sha256": written.digests,
    }
    return TargetResult(report, chosen.warnings(written.survival) + verify.warnings(logits))


def _weights(job: ExportJob, chosen: Rounding, device: str) -> WrittenTensors:
    from ossia.export.merged import MergedModel
    from ossia.export.writers.safetensors import write_safetensors

    needed = _bytes(job, chosen)
    check_disk(job.out.parent, needed, f"the merged model with {chosen.layout} experts")
    merged = MergedModel(job.base, job.adapter, packed=chosen.packed, device=device)
    with job.progress(f"merging, experts {chosen.layout}", needed) as advance:
        return write_safetensors(merged, job.folder, advance)


def _side_files(job: ExportJob, chosen: Rounding) -> dict[str, Any]:
    """Copy tokenizer and licence; write template, card and a config.json for old and new readers.

    Returns what became of the template.
    """
    from ossia.export.card import model_card

    copied = copy_side_files(job.base.folder, job.folder)
    template = _template(job)
    shape = job.base.shape()
    ours = layout.config_json(shape, chosen.packed)
    both_spellings = {key: ours[key] for key in ("rope_parameters", "rope_scaling", "rope_theta", "torch_dtype")}
    config = ours | job.base.config() | both_spellings
    config.pop("dtype", None)  # transformers 5's spelling of torch_dtype
    if not chosen.packed:
        config.pop("quantization_config", None)
    write_json(job.folder / "config.json", config)
    if "generation_config.json" not in copied:
        write_json(job.folder / "generation_config.json", layout.generation_config_json(shape))
    text = model_card(job.source, job.out.name, merged=True, experts=f"{chosen.layout}, {chosen.reason}")
    (job.folder / "README.md").write_text(text, encoding="utf-8")
    return template


def _template(job: ExportJob) -> dict[str, Any]:
    """Write the chat template that renders as training did, and keep the base's beside it; return what was done.

    transformers reads chat_template.jinja before the template of tokenizer_config.json, other programs do not, so the
    second one goes.
    """
    data = job.source.subject.recipe.data
    ours = chat_template(system_of(data), data.header_order)
    file, config = job.folder / "chat_template.jinja", job.folder / "tokenizer_config.json"
    theirs = file.read_text(encoding="utf-8") if file.is_file() else None
    if config.is_file():
        settings = read_json(config)
        inner = settings.pop("chat_template", None)
        if inner is not None:
            theirs = theirs or (inner if isinstance(inner, str) else json.dumps(inner))
            write_json(config, settings)
    file.write_text(ours, encoding="utf-8")
    if theirs is None or theirs in (ours, chat_template()):
        return {"made_by": "ossia", "kept": None}
    (job.folder / BASE_TEMPLATE).write_text(theirs, encoding="utf-8")
    return {"made_by": "ossia", "kept": BASE_TEMPLATE}


def _bytes(job: ExportJob, chosen: Rounding) -> int:
    return layout.bytes_of(job.base.shape(), mxfp4=chosen.packed)


HF_TARGET = ExportTarget("hf", "a checkpoint with the adapter merged in", _write, is_model=True)
