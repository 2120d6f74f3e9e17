"""Data sets as lerobot records them on a robot: parquet, and pictures in it or in videos."""

from edgeprune.data.lerobot.action_error import ActionError
from edgeprune.data.lerobot.recording import is_recording
from edgeprune.data.lerobot.windows import calibration

__all__ = ["ActionError", "calibration", "is_recording"]
