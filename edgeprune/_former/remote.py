"""The former place of edgeprune.runtime.ssh, for scripts that name it."""

from edgeprune.runtime.ssh import Remote

__all__ = ["Remote"]
