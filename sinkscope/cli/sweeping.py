"""The commands `sweep` and `runs`: many cells in one folder, and what is in such a folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sinkscope
from sinkscope.cli import options as given
from sinkscope.cli.options import check_free, printed, say, write_table
from sinkscope.errors import SinkscopeError, first_line
from sinkscope.files import write_bytes
from sinkscope.seals import held_by

if TYPE_CHECKING:
    import pandas as pd

ACTIONS = ("list", "verify", "compare", "export")
SHOWN = ["experiment", "model", "text", "policy", "seed", "at", "quantity", "value", "low", "high"]
MANY = 60  # rows that a terminal is given


def sweep(
    grid: Annotated[Path, typer.Argument(help="A YAML file: models, texts, experiments, policies, sinks, ...")],
    jobs: Annotated[int, typer.Option(min=-1, help="Cells at the same time; -1: as many as there are cores.")] = 1,
    out: given.Out = Path("sweep"),
    quiet: given.Quiet = False,
) -> None:
    """Run every cell of a grid. The same command goes on where it was stopped, and runs only what is missing."""
    check_free(out, ["sweep"])
    table = sinkscope.sweep(grid, out, n_jobs=jobs, progress=False if quiet else None)
    write_table(table, out / "sweep", "The cells of a sweep.")
    say(quiet, *_shown(table[[name for name in SHOWN if table[name].astype(str).ne("").any()]]), f"Written to {out}")


def runs(
    folder: Annotated[str, typer.Argument(help="A folder that `sweep`, `ablate` or `lab` wrote, or one cell of it.")],
    action: Annotated[str, typer.Argument(help="list, verify, compare or export.")] = "list",
    other: Annotated[
        Path | None, typer.Argument(help="To compare with: a folder or a cell. To export to: a .csv or .parquet file.")
    ] = None,
) -> None:
    """List, verify, compare or export the cells of a run folder."""
    if folder in ACTIONS and action not in ACTIONS:  # `sinkscope runs verify FOLDER`
        folder, action = action, folder
    if action not in ACTIONS:
        raise SinkscopeError(f"{action!r} is nothing to do with a run folder; give one of {', '.join(ACTIONS)}.")
    if (other is None) == (action in ACTIONS[2:]):
        needed = {"compare": "a second folder", "export": "a file, such as table.csv,"}
        word = f"needs {needed[action]}" if action in needed else "takes one folder alone"
        raise SinkscopeError(f"`sinkscope runs {folder} {action}` {word}; see `sinkscope runs --help`.")
    if action == "compare":
        _compare(Path(folder), Path(other or ""))
    elif action == "export":
        table = sinkscope.sweep_table(folder)
        _export(table, Path(other or ""))
        say(False, f"{len(table):,} rows of {table['cell'].nunique():,} cells written to {other}")
    else:
        _list(Path(folder), action == "verify")


def _list(folder: Path, is_asked: bool) -> None:
    table = sinkscope.list_cells(folder)
    damaged = table[table["problem"] != ""]
    if not is_asked:
        columns = ["cell", "experiment", "model", "text", "policy", "seed", "seconds", "date"]
        say(False, *_shown(table[columns]))
    elif damaged.empty:
        say(False, f"{len(table):,} cells, all as they were written: settings, rows and records have their hashes.")
    if not damaged.empty:
        if is_asked:
            say(False, *damaged["problem"])
        raise SinkscopeError(f"{len(damaged)} of {len(table)} cells cannot be relied on: {damaged['problem'].iloc[0]}")


def _compare(folder: Path, other: Path) -> None:
    table = sinkscope.compare_cells(folder, other)
    both = table[table["largest"].notna()]
    equal, alone = int((both["largest"] == 0).sum()), len(table) - len(both)
    apart = both[both["largest"] != 0].sort_values("largest", ascending=False)
    if not apart.empty:
        say(False, *_shown(apart[["experiment", "model", "text", "policy", "seed", "largest", "variable", "differs"]]))
    say(False, f"{len(both)} pairs of cells: {equal} equal to the bit, {len(apart)} not; {alone} in one folder alone.")


def _shown(table: pd.DataFrame) -> list[str]:
    more = len(table) - MANY
    return [printed(table.head(MANY)), *([f"and {more:,} rows more"] if more > 0 else [])]


def _export(table: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV or Parquet, by the ending of the file's name, in the place of nothing else."""
    from sinkscope.reporting.saving import csv_text

    if path.suffix == ".csv":
        data = csv_text(table, table.attrs).encode("utf-8", "backslashreplace")
    elif path.suffix == ".parquet":
        try:
            data = table.to_parquet(index=False)
        except ImportError as problem:
            raise SinkscopeError(
                f"Parquet needs pyarrow ({first_line(problem)}): install it, or give .csv."
            ) from problem
    else:
        raise SinkscopeError(f"{path} is no table that can be written; give a file that ends in .csv or .parquet.")
    if (held := held_by(path)) and held != data:
        raise SinkscopeError(
            f"cannot write the table to {path}: what is there already is another; delete it, or give another name."
        )
    with suppress(OSError):  # the writing says why
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data, "the table")
