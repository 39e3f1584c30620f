"""The two exports, from beginning to end: a merged checkpoint (`hf`) and the adapter as it is (`adapter`)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ossia import hardware
from ossia.adapters.config import CONFIG_FILE, WEIGHTS_FILE
from ossia.adapters.read import Adapter, read_adapter
from ossia.checkpoint import layout
from ossia.checkpoint.reader import CheckpointReader, check_disk, copy_side_files, write_json
from ossia.errors import UserError
from ossia.events import Exported
from ossia.export import Experts, Target, card, folder, merge, survival, verify
from ossia.export.merge import Advance, Merged
from ossia.export.source import Source
from ossia.model.load import locate

Progress = Callable[[str, int], AbstractContextManager[Advance]]

#: Experts of each tensor that `auto` measures before it decides.
_SAMPLED = 2
#: The merged model says something else when its distance to the tuned one is more than this share of what the tuning
#: changed, and more than rounding to bfloat16 does to a model.
_SHARE_LOST, _ROUNDING_KL = 0.1, 1e-3


@dataclass(frozen=True)
class Choice:
    """How the experts are written, and why."""

    packed: bool
    reason: str

    @property
    def layout(self) -> str:
        return "mxfp4" if self.packed else "bf16"


@dataclass(frozen=True)
class Export:
    """A finished export. `report` is what report.json holds; `warnings` are for a person to read."""

    path: Path
    report: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def export(
    source: Source,
    target: Target = "hf",
    out: Path | None = None,
    *,
    experts: Experts = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Export:
    """Write an export, verify it, and note it in the run.

    Args:
        source: from `ossia.export.source.resolve`.
        target: "hf": a checkpoint with the adapter merged in. "adapter": the adapter with a card.
        out: new or empty folder; by default one in the run's `exports`.
        experts: layout of the experts in "hf". auto: four bits where that loses nothing that matters, else bfloat16.
        overwrite: replace an earlier export.
        progress: called with a title and a total, gives a context whose value is told the units done.

    Raises:
        UserError: the adapter does not fit the model, or the folder is taken.
        DoesNotFitError: the disk is too small.
        OssiaError: writing failed, or the written bytes are not the intended ones.
    """
    base = locate(source.base)
    out = out or source.default_out(target)
    folder.check(out, overwrite=overwrite, sources=(base, source.adapter))
    reader = CheckpointReader(base)
    reader.check(mxfp4=reader.is_mxfp4)
    adapter = read_adapter(source.adapter, reader.shape())
    adapter.check_copies(reader.get)
    with folder.writing(out) as partial:
        if target == "hf":
            device = hardware.device().value
            merge_job = _Merge(source, reader, adapter, partial, out, experts, device, progress or _silent)
            report, warnings = merge_job.run()
        else:
            report, warnings = _copied(source, out, partial), []
        report = {"made_by": f"ossia {version('ossia')}", "target": target, "base": source.base, **report}
        write_json(partial / folder.REPORT, report | {"warnings": warnings})
    if source.run is not None:
        source.run.log().write(Exported(path=str(out), target=target))
    return Export(out, report, warnings)


@dataclass(frozen=True)
class _Merge:
    """The steps of a merged export. `partial` is the folder that is written, `out` what it will be called."""

    source: Source
    reader: CheckpointReader
    adapter: Adapter
    partial: Path
    out: Path
    asked: Experts
    device: str
    progress: Progress

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Return the report and the warnings."""
        choice = self._choose()
        merged = self._write(choice)
        if choice.packed and self.asked == "auto" and not merged.total("experts").is_good:
            # The sample was too kind.
            shutil.rmtree(self.partial)
            self.partial.mkdir()
            choice = Choice(False, f"four bits would lose the update: {merged.total('experts').describe()}")
            merged = self._write(choice)
        self._side_files(choice)
        checked = self._verify(merged, choice)
        report = {
            "experts": {"asked": self.asked, "layout": choice.layout, "reason": choice.reason},
            "update": {
                **{part: merged.total(part).to_json() for part in merge.PARTS},
                "tensors": [{"name": part.name, **part.to_json()} for part in merged.survival],
            },
            "verified": checked,
            "sha256": merged.digests,
        }
        return report, _warnings(merged, choice, checked["logits"])

    def _choose(self) -> Choice:
        """Decide the experts' layout. `auto`: four bits only where they hold the update (`Survival.is_good`)."""
        if not self.reader.is_mxfp4:
            if self.asked == "mxfp4":
                raise UserError(
                    "the base model's experts are not in four bits",
                    where=str(self.reader.folder),
                    do="use --experts bf16, or the published model as the base",
                )
            return Choice(False, "as the base model has them")
        if self.asked != "auto":
            return Choice(self.asked == "mxfp4", "as asked for")
        if not self.adapter.touches_experts:
            return Choice(True, "the adapter does not change the experts, so their published bytes are kept")
        count = sum(".mlp.experts." in name for name in self.adapter.deltas)
        with self.progress("measuring what four bits keep", count) as advance:
            parts = merge.sample(self.reader, self.adapter, device=self.device, experts=_SAMPLED, advance=advance)
        whole = survival.total("experts", parts)
        verdict = "hold" if whole.is_good else "would lose"
        return Choice(whole.is_good, f"four bits {verdict} the update: {whole.describe()}")

    def _write(self, choice: Choice) -> Merged:
        needed = self._bytes(choice)
        check_disk(self.out.parent, needed, f"the merged model with {choice.layout} experts")
        with self.progress(f"merging, experts {choice.layout}", needed) as advance:
            return merge.write(
                self.reader, self.adapter, self.partial, packed=choice.packed, device=self.device, advance=advance
            )

    def _side_files(self, choice: Choice) -> None:
        """Copy tokenizer, template and licence; write the card and a config.json for old and new readers."""
        copied = copy_side_files(self.reader.folder, self.partial)
        shape = self.reader.shape()
        ours = layout.config_json(shape, choice.packed)
        both_spellings = {key: ours[key] for key in ("rope_parameters", "rope_scaling", "rope_theta", "torch_dtype")}
        config = ours | self.reader.config() | both_spellings
        config.pop("dtype", None)  # transformers 5's spelling of torch_dtype
        if not choice.packed:
            config.pop("quantization_config", None)
        write_json(self.partial / "config.json", config)
        if "generation_config.json" not in copied:
            write_json(self.partial / "generation_config.json", layout.generation_config_json(shape))
        text = card.write(self.source, self.out.name, merged=True, experts=f"{choice.layout}, {choice.reason}")
        (self.partial / "README.md").write_text(text, encoding="utf-8")

    def _verify(self, merged: Merged, choice: Choice) -> dict[str, Any]:
        with self.progress("verifying", self._bytes(choice)) as advance:
            counted = verify.check_bytes(self.partial, merged, packed=choice.packed, advance=advance)
        return {
            "bytes": counted,
            "logits": verify.compare_logits(self.reader.folder, self.source.adapter, self.partial),
        }

    def _bytes(self, choice: Choice) -> int:
        return layout.bytes_of(self.reader.shape(), mxfp4=choice.packed)


def _copied(source: Source, out: Path, partial: Path) -> dict[str, Any]:
    digests = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source.adapter / name, partial / name)
        with (partial / name).open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    (partial / "README.md").write_text(card.write(source, out.name, merged=False), encoding="utf-8")
    return {"sha256": digests}


def _warnings(merged: Merged, choice: Choice, logits: dict[str, Any]) -> list[str]:
    found = []
    low, high = survival.KEEP_BETWEEN
    for name in merge.PARTS:
        part = merged.total(name)
        format_, remedy = "bf16", "--to adapter"
        if name == "experts" and choice.packed:
            format_, remedy = choice.layout, "--experts bf16, or --to adapter"
        if not part.is_good:
            found.append(
                f"rounding to {format_} damages the {name}: {part.describe()} (good: {low:.0%} to {high:.0%} "
                f"kept, noise at most {survival.MOST_ERROR}). Use {remedy}"
            )
    lost = logits.get("mean_kl", 0.0)
    if lost > max(_ROUNDING_KL, _SHARE_LOST * logits.get("effect_kl", 0.0)):
        found.append(
            f"the merged model differs from the tuned one by {lost:.2g} nats per token; the tuning itself changed "
            f"{logits['effect_kl']:.2g}"
        )
    return found


def _silent(_title: str, _total: int) -> AbstractContextManager[Advance]:
    def advance(_units: int) -> None:
        pass

    return nullcontext(advance)
