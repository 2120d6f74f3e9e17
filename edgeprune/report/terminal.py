"""The report on a terminal: readable at 80 columns, without colour and without Unicode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeprune.report import words
from edgeprune.report.digits import DASH, MINUS, TIMES, UNKNOWN
from edgeprune.report.headline import headline, headline_tone, tone
from edgeprune.report.model import GroupWidth, Report

MOST_GROUPS = 24

_STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "": ""}

#: What stands in for characters that the terminal's encoding lacks.
_PLAIN = str.maketrans(
    {
        "→": "->",
        MINUS: "-",
        DASH: "-",
        TIMES: "x",
        "…": "...",
        "≥": ">=",
        "✓": "ok",
        "✗": "NO",
        "·": "-",
    }
)


def print_report(report: Report, console: Console) -> None:
    """Prints what was won, what it cost, what changed, and what was proved."""
    _Printer(report, console).run()


class _Printer:
    def __init__(self, report: Report, console: Console) -> None:
        self._report = report
        self._console = console
        self._plain = not encodes_marks(console)

    def run(self) -> None:
        report = self._report
        self._line(f"{report.model} on {report.profile}", "bold")
        self._line(headline(report), _STYLES[headline_tone(report)])
        self._figures()
        self._history()
        self._widths()
        if report.sparsity is not None:
            self._heading("Zeros")
            self._indented(words.zeros_sentence(report))
        if report.removed_layers:
            self._heading(f"Layers removed ({len(report.removed_layers)})")
            self._indented(", ".join(report.removed_layers))
        self._proofs()
        self._bullets("Warnings", report.warnings, "yellow")
        self._bullets("Notes", report.remarks)
        self._end()

    # -- parts ----------------------------------------------------------------------------------

    def _figures(self) -> None:
        with_budgets = not self._report.budgets.is_empty
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        table.add_column("")
        for name in ("before", "after", "change"):
            table.add_column(name, justify="right")
        if with_budgets:
            table.add_column("budget")
        for row in words.rows(self._report):
            cells = [self._text(t) for t in (row.label, row.before, row.after, row.change)]
            if with_budgets:
                cells.append(self._budget(row))
            table.add_row(*cells)
        self._console.print()
        self._console.print(table)
        for note in words.notes(self._report):
            self._line(note)

    def _history(self) -> None:
        """Each step of progressive pruning."""
        rows = words.steps(self._report)
        if not rows:
            return
        self._heading("Steps")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        for name in ("step", "parameters", "removed", self._report.metric_name or "metric"):
            table.add_column(self._text(name), justify="right")
        for row in rows:
            table.add_row(*map(self._text, (row.step, row.parameters, row.removed, row.metric)))
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))

    def _budget(self, row: words.Row) -> Text:
        if row.met is None:
            return Text("")
        if row.met:
            return self._text(f"{row.budget} {self._mark('✓')}met", "green")
        verdict = "not known" if row.after == UNKNOWN else row.missed
        return self._text(f"{row.budget} {self._mark('✗')}{verdict}", "bold red")

    def _mark(self, mark: str) -> str:
        """A mark before a word that says the same; not needed where it can't be printed."""
        return "" if self._plain else f"{mark} "

    def _widths(self) -> None:
        if not self._report.groups or self._report.sparsity is not None:
            return  # zeros leave all widths as they were
        self._heading(f"Widths: {words.groups_sentence(self._report)}")
        every = words.changed(self._report)
        shown = words.most_changed(every, MOST_GROUPS)
        if shown:
            self._console.print(Padding(self._grid(shown), (0, 0, 0, 2), expand=False))
        if len(every) > len(shown):
            self._indented(f"… {len(every) - len(shown)} more in report.json")

    def _grid(self, groups: Sequence[GroupWidth]) -> Table:
        """Names and widths in as many columns as fit, to be read downwards."""
        names = [self._text(group.name) for group in groups]
        arrow = "→".translate(_PLAIN) if self._plain else "→"
        left = max(len(str(group.before)) for group in groups)
        right = max(len(str(group.after)) for group in groups)
        widths = [Text(f"{g.before:>{left}} {arrow} {g.after:>{right}}") for g in groups]
        gap = 3
        one = max(cell_len(t.plain) for t in names) + max(cell_len(t.plain) for t in widths) + 1
        room = self._console.width - 2
        columns = max(1, min(3, (room + gap) // (one + gap)))
        length = -(-len(groups) // columns)
        columns = -(-len(groups) // length)  # an empty column would squeeze the others
        table = Table.grid(padding=(0, 1, 0, 0))
        for column in range(columns):
            table.add_column(overflow="fold")
            table.add_column(justify="right", no_wrap=True)
            if column < columns - 1:
                table.add_column(width=1)
        for at in range(length):
            cells: list[Text] = []
            for column in range(columns):
                item = at + column * length
                inside = item < len(groups)
                cells += [names[item], widths[item]] if inside else [Text(""), Text("")]
                if column < columns - 1:
                    cells.append(Text(""))
            table.add_row(*cells)
        return table

    def _proofs(self) -> None:
        self._heading("Proofs")
        for proof in words.proofs(self._report):
            mark = {True: "✓", False: "✗", None: "·"}[proof.passed]
            style = {True: "", False: "bold red", None: ""}[proof.passed]
            self._item(mark, f"{proof.title}: {proof.text}", style)
        self._item("·", f"Choice: {words.solver_sentence(self._report)}")
        self._item("·", f"PyTorch: {words.module_sentence(self._report)}")

    def _bullets(self, title: str, lines: Iterable[str], style: str = "") -> None:
        lines = list(lines)
        if lines:
            self._heading(title, style)
            for line in lines:
                self._item("-", line)

    def _end(self) -> None:
        where = words.written(self._report)
        self._console.print()
        style = _STYLES[tone(self._report)]
        verdict = words.verdict(self._report)
        self._line(f"{verdict} {where}".rstrip(), style)

    # -- lines ----------------------------------------------------------------------------------

    def _text(self, text: str, style: str = "") -> Text:
        return line(text, self._console, style)

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(self._text(text, style))

    def _heading(self, text: str, style: str = "") -> None:
        self._console.print()
        self._line(text, f"bold {style}".strip())

    def _indented(self, text: str) -> None:
        self._console.print(Padding(self._text(text), (0, 0, 0, 2), expand=False))

    def _item(self, mark: str, text: str, style: str = "") -> None:
        """A marked paragraph with a hanging indent."""
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row(self._text(mark, style), self._text(text, style))
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))


def line(text: str, console: Console, style: str = "") -> Text:
    """One line that the terminal's encoding has all characters for."""
    text = words.printable(text)
    if not encodes_marks(console):
        encoding = console.encoding
        text = text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return Text(text, style=style, overflow="fold")


def encodes_marks(console: Console) -> bool:
    """Whether check marks, arrows and the like can be printed."""
    try:
        "".join(map(chr, _PLAIN)).encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
