"""torchrun that ends with the status that edgeprune ends with: its own would be 1 whatever it was.

edgeprune-torchrun --nproc-per-node 4 -m edgeprune --profile jetson-nano model.pt …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """torchrun's command line, as `torch.distributed.run` takes it.

    Ends the process with the status of the first of its processes, by rank, that ended with one of
    its own accord, and with 1 where all that failed were killed.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(list(sys.argv[1:] if arguments is None else arguments)))
    except ChildFailedError as error:
        # The others are ended by a signal (below 0) as soon as one has failed.
        statuses = [failure.exitcode for _, failure in sorted(error.failures.items())]
        sys.exit(next((status for status in statuses if status > 0), 1))


if __name__ == "__main__":
    main()
