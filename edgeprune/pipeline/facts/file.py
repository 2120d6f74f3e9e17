"""What a report says of the ONNX file: its opset, the sizes that it takes, what can't run it."""

from __future__ import annotations

from edgeprune.core.large.onnx_file import read_light
from edgeprune.export.onnx import Exported
from edgeprune.graph.free_sizes import BATCH
from edgeprune.graph.trace import TracedModel
from edgeprune.pipeline.options import Settings
from edgeprune.pipeline.workspace import Candidate
from edgeprune.report import OnnxFacts
from edgeprune.runtime.support import findings


def onnx_facts(traced: TracedModel, best: Candidate, settings: Settings) -> OnnxFacts:
    """What the file is, and what its device makes of it."""
    exported = best.exported
    return OnnxFacts(
        opset=exported.form.opset,
        ir_version=exported.ir_version,
        batch="dynamic" if traced.any_batch and not exported.form.fixed else str(traced.batch),
        batch_note=_batch_note(traced, settings),
        free_sizes={} if exported.form.fixed else _free_sizes(traced),
        target=settings.profile.target.full_name,
        unsupported_on_target=_unsupported(exported, settings),
    )


def _unsupported(exported: Exported, settings: Settings) -> list[str]:
    """What the device's runtime can't run of the file, each reason once with its first place."""
    model = read_light(exported.path)
    places: dict[str, list[str]] = {}
    for found in findings(model, settings.profile.target):
        if found.fatal:
            places.setdefault(found.message, []).append(found.layer or found.node or "")
    return [message + _where(where) for message, where in places.items()]


def _where(places: list[str]) -> str:
    if not places[0]:
        return ""
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f" ({places[0]}{more})"


def _free_sizes(traced: TracedModel) -> dict[str, str]:
    """The ranges of the sizes beside the batch that are free in the graph."""
    sizes = traced.example_inputs.free.sizes.items()
    return {name: str(size) for name, size in sizes if name != BATCH}


def fixed_sizes(traced: TracedModel, settings: Settings) -> list[str]:
    """That sizes which the model leaves free are fixed in the file, and by what."""
    free = _free_sizes(traced)
    if not free or not settings.fixed_batch:
        return []
    return [f"{', '.join(free)} fixed as in the example: {_wants_fixed(settings)}"]


def _batch_note(traced: TracedModel, settings: Settings) -> str:
    """Why the file takes one batch alone; nothing where it doesn't."""
    if not traced.any_batch:
        return traced.fixed_because
    return _wants_fixed(settings) if settings.fixed_batch else ""


def _wants_fixed(settings: Settings) -> str:
    """Why the file is to have fixed sizes."""
    if settings.batch is not None:
        return "--batch asked for it"
    return f"{settings.profile.target.full_name} wants fixed sizes (--batch dynamic leaves it free)"
