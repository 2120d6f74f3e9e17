"""Robot policies as lerobot saves them: a configuration, weights, and what normalises both ends."""

from edgeprune.loading.policies.folder import is_policy, policy_from_folder

__all__ = ["is_policy", "policy_from_folder"]
