"""Progress on the terminal: a bar per step that takes its time."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_WORDS = {
    "load": "loading",
    "trace": "tracing with torch.export",
    "couple": "finding what must go together",
    "score": "scoring units and layers",
    "shape": "weighing few deep cuts against many small ones",
    "export baseline": "exporting the model as it is",
    "price": "pricing the exported file",
    "solve": "choosing widths and layers",
    "resize": "resizing and proving the surgery",
    "recover": "fitting layers anew",
    "export": "exporting to ONNX",
    "evaluate": "evaluating",
    "validate": "comparing with onnxruntime",
    "write back": "resizing your own module",
    "train": "training",
    "compare": "comparing with the sweep that is there",
    "points": "points of the curve",
}


class Bars:
    """A listener that shows steps on a terminal; on anything else it shows nothing."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, step: str) -> None:
        known = self._tasks.pop(step, None)
        if known is not None:
            self._progress.remove_task(known)
        words = _WORDS.get(step, step)
        self._tasks[step] = self._progress.add_task(words, total=None, note="")

    def advance(self, step: str, fraction: float | None, note: str) -> None:
        task = self._tasks.get(step)
        if task is not None:
            known = {"total": 1.0, "completed": fraction} if fraction is not None else {}
            self._progress.update(task, note=note, **known)  # type: ignore[arg-type]

    def end(self, step: str, seconds: float) -> None:
        task = self._tasks.get(step)
        if task is not None:
            self._progress.update(task, total=1.0, completed=1.0)

    def tell(self, words: str) -> None:
        """A line that stays."""
        self._progress.console.print(f"edgeprune: {words}", highlight=False, soft_wrap=True)
