"""The words of a command, and what can be said of them before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgeprune.core.distributed import among_others
from edgeprune.loading.foreign import check_exists
from edgeprune.pipeline.options import PruneOptions
from edgeprune.pipeline.requirements import Requirements
from edgeprune.profiles.profile import HOST, load_profile


@dataclass(frozen=True)
class Request:
    """The words of `edgeprune prune`. command: all of them as they were typed."""

    model: str
    profile: str
    options: PruneOptions
    inputs: tuple[str, ...] = ()
    arch: str | None = None
    trust: bool = False
    data: str | None = None
    metric: str | None = None
    output: Path | None = None
    remote: str | None = None
    ssh_options: str = ""
    understood: str | None = None
    command: str = ""

    def with_limits(self, asked: Requirements) -> Request:
        """With what a sentence asks for. Raises UserError for what options say too."""
        return replace(
            self,
            profile=asked.profile or self.profile,
            options=self.options.with_limits(asked),
            understood=f"--require was understood as: {asked}",
        )

    def checked(self) -> Request:
        """Itself. Raises UserError for a file, a profile or an option that is wrong whatever the
        model is: importing torch takes seconds, and a mistyped name shouldn't wait for it."""
        if among_others():  # they meet first, so that one of them says it for all
            return self
        check_exists(self.model)
        if self.profile != HOST:
            self.options.on(load_profile(self.profile), self.remote is not None)
        return self
