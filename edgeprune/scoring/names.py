"""The criteria by name, and what each needs."""

from __future__ import annotations

from edgeprune.core.errors import UserError

CRITERIA = (
    "magnitude",
    "l1",
    "bn-scale",
    "fpgm",
    "lamp",
    "random",
    "gradient",
    "saliency",
    "reconstruction",
    "sensitivity",
)
#: Those that score single weights too.
ELEMENT_CRITERIA = ("magnitude", "l1", "lamp", "random", "gradient", "saliency")
_NEED_DATA = ("gradient", "saliency", "reconstruction", "sensitivity")


def check_criterion(name: str, has_data: bool) -> None:
    """Raises UserError for a criterion that isn't there, or needs data where there are none."""
    if name not in ("auto", *CRITERIA):
        raise UserError(
            f"--importance {name} is not a criterion: use {', '.join(('auto', *CRITERIA))}"
        )
    if name in _NEED_DATA and not has_data:
        raise UserError(f"--importance {name} needs samples: give --data (no labels are needed)")


def check_element_criterion(name: str) -> None:
    """Raises UserError for a criterion that scores whole channels only."""
    if name not in ("auto", *ELEMENT_CRITERIA):
        raise UserError(
            f"--importance {name} scores channels, not single weights: use "
            f"{', '.join(('auto', *ELEMENT_CRITERIA))}"
        )
