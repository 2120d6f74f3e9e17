"""`python -m edgeprune`."""

import os
import sys

# Python puts the current folder first: a yaml.py that lies there by chance, or by design, isn't
# ours to run. What an option names from there is found all the same (see loading/import_spec.py).
if sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]

from edgeprune.cli.app import entry

entry()
