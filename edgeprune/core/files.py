"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edgeprune.core.scratch import draft_of


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes its name once it is finished; an older one stays until then.

    Raises OSError where it can't be written.
    """
    with draft_of(path) as (handle, draft):
        with open(handle, "wb") as file:
            yield file
        os.chmod(draft, 0o644)  # a draft is for its owner alone
        os.replace(draft, path)
