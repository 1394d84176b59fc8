"""`tonnage accuracy`: the estimator against every row of ground truth in a folder, and the table that says how good it
is.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.accuracy import evidence, report, rows, scoring, table
from app.accuracy.table import Accuracy, Line
from app.planning.coverage import SHIPPED

WIDTH = 160
"""Columns that the table needs; a narrower terminal wraps them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A folder, and where to write each row."""
    parser.description = (
        "Run the estimator against every row of ground truth in FOLDER: CSV files of published measurements and JSON "
        "files of traced training steps. Prints how far off it is by source and kind of reading."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--rows", metavar="FILE", type=Path, help="write one JSON line for each row")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table as JSON")
    parser.add_argument(
        "--covered",
        metavar="FILE",
        type=Path,
        help="judge bounds by what this ground truth covers, not by what covers this version, and write it as Python",
    )
    parser.add_argument("--page", metavar="FILE", type=Path, help="write the table as a page of documentation")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table. Returns 0, or 2 for a folder without ground truth or a file that cannot be written."""
    try:
        truth = rows.read(arguments.folder)
    except rows.Unreadable as error:
        print(f"tonnage accuracy: {error}", file=sys.stderr)
        return 2
    for sentence in truth.warnings:
        print(f"tonnage accuracy: {sentence}", file=sys.stderr)
    found = scoring.score(truth)
    covering = evidence.gather(found)
    outcomes = scoring.judged(found, SHIPPED if arguments.covered is None else covering.evidence)
    accuracy = table.tabulate(outcomes, covering)
    try:
        if arguments.rows is not None:
            arguments.rows.write_text("".join(f"{table.row_as_json(outcome)}\n" for outcome in outcomes), "utf-8")
        if arguments.json is not None:
            arguments.json.write_text(table.as_json(accuracy), "utf-8")
        if arguments.covered is not None:
            arguments.covered.write_text(evidence.as_module(covering.features), "utf-8")
        if arguments.page is not None:
            arguments.page.write_text(report.page(accuracy), "utf-8")
    except OSError as error:
        print(f"tonnage accuracy: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    console = Console()
    console.width = max(console.width, WIDTH)
    show(accuracy, console)
    return 0


def show(accuracy: Accuracy, console: Console) -> None:
    """The table for people."""
    console.print(
        f"{accuracy.rows:,} rows, {accuracy.memory_rows:,} about memory, {accuracy.expressed_rows:,} of these estimated"
    )
    for title, lines in (("by source", accuracy.sources), ("overall", accuracy.overall)):
        console.print(_scores(title, lines))
    console.print(_peers(accuracy))
    heads = ("rows", "failures", "ran", "said not to fit", "not promised", "failed", "said to fit", "promised")
    console.print(_table("verdicts, by configuration", heads, map(report.verdict_cells, accuracy.verdicts), words=2))
    if accuracy.reasons:
        console.print("[bold]not estimated[/]")
        for reason, count in accuracy.reasons[:20]:
            console.print(f"{count:6,}  {reason}", markup=False, highlight=False)


def _scores(title: str, lines: tuple[Line, ...]) -> Table:
    heads = ("source", "kind", "rows", "estimated", "median", "p95", "signed", "within bound", "worst")
    rows = ((line.source, line.kind, *report.cells(line.score)) for line in lines)
    return _table(title, heads, rows, words=2)


def _peers(accuracy: Accuracy) -> Table:
    heads = ("peer", "rows of", "rows", "median", "p95", "our median", "our p95")
    rows = (
        (
            peer.peer,
            peer.kind,
            f"{peer.rows:,}",
            report.percent(peer.median_error),
            report.percent(peer.p95_error),
            report.percent(peer.our_median_error),
            report.percent(peer.our_p95_error),
        )
        for peer in accuracy.peers
    )
    return _table("peers", heads, rows, words=2)


def _table(title: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, words: int) -> Table:
    """A table whose first `words` columns are words and the others figures."""
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        shown.add_column(head, justify="left" if number < words else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown
