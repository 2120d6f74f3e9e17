"""Does an ONNX file meet a device's budgets? Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune.budgets import Budgets
from edgeprune.device.profile import Profile, load_profile


def check(
    model: str | Path,
    profile: str | Path | Profile = "host",
    budgets: Budgets | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """An ONNX file's latency, peak memory and size on a device, and whether they keep the budgets.

    budgets: override the profile's own. measure: run it on this machine instead of predicting.
    Returns {"model", "profile", "latency_ms", "latency_source", "peak_memory_mb", "size_mb",
    "budgets", "met", "warnings"}.

    Raises UserError for a file that isn't ONNX or a profile that isn't there.
    """
    from edgeprune.device.from_onnx import (
        kernel_graph,
        load_onnx,
        pricing_remarks,
        recorded_shapes,
    )

    path = Path(model)
    loaded = load_onnx(path)
    device = profile if isinstance(profile, Profile) else load_profile(profile)
    limits = device.budgets.overridden_by(budgets or Budgets())
    external = path.with_name(f"{path.name}.data")
    size_mb = sum(p.stat().st_size for p in (path, external) if p.exists()) / 1e6
    if measure:
        from edgeprune.running import measure as run

        shapes = [f"{n}={'x'.join(map(str, s))}" for n, s in recorded_shapes(loaded).items()]
        timed = run(path, device.threads or 1, shapes=shapes)
        latency_ms, memory_mb = timed["latency_ms"], timed["peak_memory_mb"]
    else:
        kernels = kernel_graph(loaded)
        latency_ms = kernels.latency_ms(device, {})
        memory_mb = kernels.peak_memory_mb(device, {})
    met = limits.is_satisfied_by(latency_ms=latency_ms, memory_mb=memory_mb, size_mb=size_mb)
    return {
        "model": str(model),
        "profile": device.name,
        "latency_ms": latency_ms,
        "latency_source": "measured" if measure else "predicted",
        "peak_memory_mb": memory_mb,
        "size_mb": size_mb,
        "budgets": limits.as_dict(),
        "met": met,
        "warnings": [] if measure else pricing_remarks(loaded),
    }
