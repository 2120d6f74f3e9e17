"""How fast the commands answer that need no torch: the median of several runs, each a process.

python benchmarks/startup.py [--runs 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = (["--help"], ["profiles"], ["profiles", "jetson-nano"], ["check", "--help"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    for words in COMMANDS:
        times = [once(words) for _ in range(runs + 1)][1:]  # the first fills the disk's cache
        print(
            f"edgeprune {' '.join(words):22} {statistics.median(times):.2f} s "
            f"(slowest of {runs}: {max(times):.2f} s)"
        )


def once(words: list[str]) -> float:
    """Seconds of one command, as a whole process."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "edgeprune", *words]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
