"""Runs a command that the kernel kills as soon as it opens an internet socket (Linux).

python nosockets.py COMMAND …
"""

from __future__ import annotations

import os
import sys

from edgeprune.loading.kernel import forbid_internet

if __name__ == "__main__":
    if not forbid_internet(kill=True):
        sys.exit("no seccomp here")
    os.execvp(sys.argv[1], sys.argv[1:])
