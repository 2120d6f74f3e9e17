"""Coverage-guided fuzzing of every parser of ours: UserError in one line, or an answer.

    pip install atheris
    PYTHONPATH=. python benchmarks/fuzz.py [--runs 20000] [--corpus FOLDER] [PARSER …]

Each parser is a process of its own, given at first what lies in tests/corpus/PARSER, and then what
atheris (libFuzzer) makes of that. An input that ends otherwise than by an answer or an
EdgePruneError is written to tests/corpus/PARSER/crash-…, where a test tries it from then on; so is
one that takes over 10 s or 2 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgeprune.core.errors import EdgePruneError

_ROOT = Path(__file__).parents[1]
CORPUS = _ROOT / "tests" / "corpus"
SECONDS, MEGABYTES = 10, 2000

Parser = Callable[[bytes, Path], object]


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def profile(content: bytes, folder: Path) -> object:
    """A device profile: also what the cache keeps of this machine."""
    from edgeprune.profiles.profile import load_profile

    return load_profile(_file(folder, "p.yaml", content))


def results(content: bytes, folder: Path) -> object:
    """What microbench.py or a kit brought home."""
    from edgeprune.calibration.observations import read_results

    return read_results(_file(folder, "results.jsonl", content))


def arrays(content: bytes, folder: Path) -> object:
    """Labelled data, scores, masks. Who reads them takes the two errors that are documented."""
    from edgeprune.core.bounded import read_arrays

    try:
        return dict(read_arrays(_file(folder, "a.npz", content)))
    except (OSError, ValueError) as error:
        raise EdgePruneError(str(error)) from error


def sentence(content: bytes, folder: Path) -> object:
    """--require."""
    from edgeprune.pipeline.requirements import understand

    return understand(content.decode(errors="replace"))


def sweep(content: bytes, folder: Path) -> object:
    """A sweep's folder: its beginning, its sums, a point's report."""
    from edgeprune.sweeping.store import Store

    point = folder / "points" / "0.60"
    point.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "pruned.pt2", "pruned.safetensors", "report.html", "report.json"):
        (point / name).write_bytes(content)
    (folder / "sums.json").write_bytes(content)
    (folder / "prepared.json").write_bytes(content)
    store = Store(folder)
    store.report(0.6)
    return store.known()


def report(content: bytes, folder: Path) -> object:
    """A report that is read again."""
    from edgeprune.report import Report

    return Report.from_json(content)


def checkpoint(content: bytes, folder: Path) -> object:
    """A run's state, whole by its digest or not."""
    import hashlib

    from edgeprune.training.checkpoint import Checkpoint

    for damaged in (content, hashlib.sha256(content).digest() + content):
        path = _file(folder, "run.pt", damaged)
        Checkpoint(path, {"version": 1})._read(path)
    return None


def program(content: bytes, folder: Path) -> object:
    """The JSON of a torch.export program."""
    from edgeprune.loading.program_schema import check_program

    check_program(["models/model.json"], {"models/model.json": content})
    return None


def pickle(content: bytes, folder: Path) -> object:
    """A bare pickle's names, of which each is judged."""
    from edgeprune.loading.safe_pickle import pickled_names

    return pickled_names(_file(folder, "m.pkl", content))


def names(content: bytes, folder: Path) -> object:
    """A name that a pickle gives."""
    from edgeprune.loading.safe_pickle import harmless

    return harmless(content.decode(errors="replace"))


def onnx(content: bytes, folder: Path) -> object:
    """A stranger's ONNX file, read and priced."""
    from edgeprune.cost.onnx_reader import load_onnx
    from edgeprune.pipeline.check import _predicted
    from edgeprune.profiles.profile import load_profile

    path = _file(folder, "m.onnx", content)
    return _predicted(load_onnx(path, "m.onnx"), load_profile("raspberry-pi-4"))


PARSERS: dict[str, Parser] = {
    f.__name__: f
    for f in (
        profile, results, arrays, sentence, sweep, report, checkpoint, program, pickle, names, onnx
    )
}  # fmt: skip


#: These run in a child process first, of which any error is a line for the user: what is looked for
#: is what hangs, grows or crashes.
CONFINED = ("program", "pickle", "onnx")


def parse(parser: str, content: bytes, folder: Path) -> str:
    """What the user would be told, "" where the content is sound. Anything else is raised."""
    try:
        PARSERS[parser](content, folder)
    except EdgePruneError as error:
        return str(error)
    except Exception as error:
        if parser not in CONFINED:
            raise
        return type(error).__name__
    return ""


def _fuzz(parser: str, runs: int, corpus: Path) -> None:
    import atheris

    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # thousands of files a second
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory))
    with atheris.instrument_imports(include=["edgeprune"]), contextlib.suppress(Exception):
        parse(parser, b"", folder)  # imports what it needs
    found = CORPUS / parser
    arguments = [
        "fuzz", str(corpus), str(found), f"-runs={runs}", f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEGABYTES}", f"-artifact_prefix={found}/", "-max_len=20000", "-seed=1",
        "-verbosity=0", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup(arguments, lambda content: parse(parser, content, folder) and None)
    atheris.Fuzz()


def main() -> None:
    argument_parser = argparse.ArgumentParser(description=__doc__)
    argument_parser.add_argument("parsers", nargs="*", metavar="PARSER", help=", ".join(PARSERS))
    argument_parser.add_argument("--runs", type=int, default=20_000)
    argument_parser.add_argument("--corpus", type=Path, default=Path("/tmp/edgeprune-fuzz"))
    options = argument_parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    context, bad = multiprocessing.get_context("spawn"), []
    for parser in options.parsers or PARSERS:
        corpus = options.corpus / parser
        corpus.mkdir(parents=True, exist_ok=True)
        (CORPUS / parser).mkdir(parents=True, exist_ok=True)
        process = context.Process(target=_fuzz, args=(parser, options.runs, corpus))
        process.start()
        process.join()
        kept = len(list(corpus.iterdir()))
        print(f"{parser}: ended with {process.exitcode}, {kept} inputs kept", flush=True)
        if process.exitcode:
            bad.append(parser)
    if bad:
        sys.exit(f"crashes: {', '.join(bad)} (inputs in {CORPUS})")


if __name__ == "__main__":
    main()
