"""Memory that is given back to the system and fetched again costs more than the arithmetic."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
#: Bytes of weights beyond which memory counts for more than time.
LARGE = 2**28
_LARGEST_TENSOR, _MOST_KEPT = 2**27, 2**28  # bytes


def let_go(weights: int) -> None:
    """Frees what nothing but circles of references holds, where a model is large, and gives it
    back to the system, where the C library can be told so.

    weights: bytes of the model's. A graph and its nodes know each other, so that weights which a
    graph reads from a file's content stay until Python looks for such circles: it counts objects,
    not gigabytes.
    """
    if weights > LARGE:
        gc.collect()
        give_back(weights)


def give_back(weights: int) -> None:
    """Gives what a large model's steps freed back to the system, where the C library can be told
    so: it keeps tensors under 32 MB for the next ones, which may not fit in their places."""
    if weights > LARGE:
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory(weights: int) -> None:
    """Lets the C library keep freed memory for the next large tensor, where it can be told so.

    weights: bytes of the model's; a large one's copies would stay as long as the process does.

    With glibc's defaults each tensor over 32 MB is mapped, zeroed page by page and unmapped again:
    EfficientNet-Lite0 at 224x224 in batches of 32 took 46 ms a picture, and 14 ms with this.
    """
    if not sys.platform.startswith("linux") or weights > LARGE:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_TENSOR)
    mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
