"""What must go together: labels, units, groups, removable branches (docs/coupling.md)."""

from edgeprune.coupling.coupling import Coupling, Group, couple, frozen_elements, frozen_share

__all__ = ["Coupling", "Group", "couple", "frozen_elements", "frozen_share"]
