"""Processes that carry points out: on this machine, or a Dask cluster's. Both are executors."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from edgeprune.core.errors import UserError
from edgeprune.core.scratch import scratch_folder

_CONNECT_SECONDS = 10


@contextmanager
def executor(jobs: int, cluster: str | None) -> Iterator[Executor]:
    """Where points run: `jobs` processes here, or the cluster whose scheduler is at an address.

    Whatever ends the block ends them. Raises UserError for a cluster that can't be reached.
    """
    with _processes(jobs) if cluster is None else _cluster(cluster) as found:
        yield found


def check_cluster(address: str) -> None:
    """Raises UserError for a cluster that can't be reached: better before the scores than after."""
    with _cluster(address):
        pass


@contextmanager
def _processes(jobs: int) -> Iterator[Executor]:
    """Fresh processes: a fork would inherit the locks of torch's threads."""
    before = set(multiprocessing.active_children())
    with scratch_folder() as scratch:
        pool = ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), _begin_worker, (str(scratch),)
        )
        try:
            yield pool
        except BaseException:
            # Not to wait for what an interrupted sweep no longer wants.
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker(scratch: str) -> None:
    """Runs first in each process: it is the parent that answers ctrl-C, and that prints."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = scratch  # the parent removes it, however the worker ends
    sys.stdout.flush()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaks
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(
            "--cluster needs Dask: pip install 'edgeprune[cluster]', here and on the workers"
        ) from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--cluster {address}: no Dask scheduler answers there: start one (dask scheduler) and "
            "give the address that it prints, such as tcp://host:8786"
        ) from error
    try:
        if not client.scheduler_info()["workers"]:
            raise UserError(
                f"--cluster {address}: the scheduler has no workers: start some "
                f"(dask worker {address} --nthreads 1)"
            )
        yield client.get_executor(pure=False)
    finally:
        client.close()  # and what it asked for is cancelled
