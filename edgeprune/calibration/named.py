"""A profile by what a user calls it: shipped, a file of one's own, or this machine."""

from __future__ import annotations

from pathlib import Path

from edgeprune.profiles import profile as shipped
from edgeprune.profiles.profile import HOST, Profile


def load_profile(name: str | Path) -> Profile:
    """The profile of a shipped name, of "host", or of a YAML file of one's own.

    A name that ends in .yaml or .yml is a path. "host" may measure this machine, under a minute.
    Raises UserError, in one line, for an unknown name, a file that cannot be read, a field that
    breaks the schema, or a schema newer than this version.
    """
    if str(name) == HOST:
        from edgeprune.calibration.host import host_profile  # only then: it takes a while to import

        return host_profile()
    return shipped.load_profile(name)
