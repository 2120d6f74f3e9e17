"""Calibrating another device over ssh: the kit goes there, its results come back."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgeprune.calibration.fit import fit
from edgeprune.calibration.host import FULL_SECONDS, Say, check_output, save_profile, say_aside
from edgeprune.calibration.kit import write_kit
from edgeprune.calibration.observations import read_results
from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.profiles.profile import Profile
from edgeprune.runtime.ssh import Remote


def calibrate_remote(
    output: Path,
    url: str,
    ssh_options: str = "",
    ram_mb: float | None = None,
    threads: int = 1,
    seconds: float = FULL_SECONDS,
    say: Say | None = None,
) -> Profile:
    """Measures the device behind `ssh://…` and writes its profile to `output`, named after it.

    ram_mb: the device's memory in MB of 10**6 bytes, default what it says itself. seconds: how long
    it measures. say: is told in one line that it measures.
    Raises UserError, in one line, for a device that can't be reached or measured.
    """
    check_output(output)
    tell = say or say_aside
    with (
        tempfile.TemporaryDirectory(prefix="edgeprune-afar-") as folder,
        Remote.parse(url, ssh_options) as device,
    ):
        kit, results = Path(folder) / "kit.zip", Path(folder) / "results.jsonl"
        tell(f"measuring {device} for {output.name} (about {seconds / 60:.0f} minutes) ...")
        write_kit(kit)
        name = device.put(kit)
        options = ["--threads", threads, "--seconds", seconds]
        device.run("microbench.py", [name, "-o", results.name, *options])
        device.fetch(results.name, results)
        try:
            profile = fit(read_results(results), output.stem, ram_mb=ram_mb)
        except EdgePruneError as error:
            raise UserError(f"{device}: {error}") from error
    save_profile(profile, output)
    return profile
