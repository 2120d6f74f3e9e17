"""What must go together: labels on dimensions, units, groups, removable branches (docs/coupling.md)."""

from edgeprune.coupling.groups import Coupling, Group, couple

__all__ = ["Coupling", "Group", "couple"]
