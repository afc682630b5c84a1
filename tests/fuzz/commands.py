"""Every command with words of any kind, in this process: what it prints, and with which exit code it ends."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinkscope import cli
from tests.fuzz import world
from tests.fuzz.hostile import PATHS
from tests.fuzz.trying import OK, REFUSED, UNCLEAR, Hung, Outcome, blamed, guarded, left_behind

Words = list[str]
NUMBERS = ("", "x", "-1", "0", "1", "2", "1.5", "nan", "inf", "-inf", "1e3", "9" * 30, "0x10", "٣", "\ud800", "1 2")
TEXTS = (
    "",
    "nonsense",
    "-",
    "--",
    "-h",
    "'",
    "\n",
    "a\nb",
    "\x1b[31m",
    "x" * 5000,
    "漢字🙂",
    "\ud800",
    "hf:",
    "hf:a:b:c:d",
)
ENDLESS = ("--steps", "--max-new-tokens", "--jobs", "--workers", "--repeats")
"""Options that may ask for any number of what takes time."""


def ordinary(folder: Path) -> dict[str, Words]:
    """A line for each command that goes well, in a moment."""
    text, model = folder / "text.txt", str(world.saved_model())
    text.write_text(world.PROSE, encoding="utf-8")
    read = [model, "--text", str(text)]
    small = ["--tokens", "64", "--cache", "8", "--sinks", "2"]
    return {
        "perplexity": [*read, *small, "--quiet"],
        "ablate": [*read, *small, "--quiet"],
        "cost": [model, *small],
        "intervene": [*read, "--tokens", "40", "--sequences", "2", "--start", "10", "--evict", "sinks", "--quiet"],
        "chat": [model, "--sinks", "2", "--window", "8", "--max-new-tokens", "2", "--quiet"],
        "lab": ["--text", str(text), "--steps", "2", "--seeds", "0", "--arms", "softmax", "--quiet"],
        "report": [*read, "--sequences", "2", "--length", "24", "--no-streaming", "--no-softmax", "--quiet"],
        "atlas": [model, "--text", str(text), "--segments", "2", "--length", "24", "--no-streaming", "--quiet"],
        "explore": [*read, "--no-browser"],
        "page": [*read, "--length", "24", "--windows", "8", "--sinks", "0", "--out", str(folder / "page.html")],
        "audit": ["no-such-type"],
        "sweep": [str(world.grid_file()), "--quiet"],
        "runs": [str(world.run_folder())],
    }


def commands() -> dict[str, Any]:
    return dict(typer.main.get_group(cli.app).commands)


def kinds(name: str) -> dict[str, str]:
    """What each parameter of a command is of, by its name: the type that its function names."""
    function = next(each.callback for each in cli.app.registered_commands if each.callback.__name__ == name)
    every = inspect.signature(function, eval_str=True).parameters.values()
    return {each.name: str(getattr(each.annotation, "__origin__", each.annotation)) for each in every}


def lines(name: str) -> st.SearchStrategy[list[tuple[str, str]]]:
    """One or two options with a word each; an option of "" is one argument more."""
    pairs = [st.tuples(st.sampled_from(["", "--nonsense"]), st.sampled_from([*TEXTS, *PATHS]))]
    named = kinds(name)
    for parameter in commands()[name].params:
        option = max(parameter.opts, key=len) if parameter.param_type_name == "option" else "model"
        kind = named[parameter.name]
        if re.search(r"\b(int|float)\b", kind):
            most = [word for word in NUMBERS if not (option in ENDLESS and word.startswith("99"))]
            words = st.one_of(st.sampled_from(most), st.integers(-3, 1 if option in ENDLESS else 40).map(str))
        elif "bool" in kind:
            words = st.just("")
        else:
            words = st.sampled_from([*TEXTS, *PATHS])
        pairs.append(st.tuples(st.just(option), words))
    return st.lists(st.one_of(pairs), min_size=1, max_size=2)


def examine(name: str, examples: int) -> list[Outcome]:
    """The ordinary line of a command, and so many others."""
    found = [attempt(name, [])]
    if not examples:
        return found

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(lines(name))
    def tried(changes: list[tuple[str, str]]) -> None:
        found.append(attempt(name, changes))

    tried()
    return found


def attempt(name: str, changes: list[tuple[str, str]]) -> Outcome:
    said = " ".join(f"{option}={word[:40]!r}" for option, word in changes)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        line = ordinary(folder)[name]
        for option, word in changes:
            given = str(PATHS[word](folder)) if word in PATHS else word
            if option == "model":
                line = [given, *line[1:]] if name not in ("lab",) else [given, *line]
            else:
                line = [*line, *filter(None, [option, given] if option else [given])]
        verdict, why = _ran([name, *line], folder)
        if verdict != UNCLEAR and (left := left_behind(folder)):
            verdict, why = UNCLEAR, f"left {left} behind"
    return Outcome(f"sinkscope {name}", said, verdict, why)


def _ran(words: Words, folder: Path) -> tuple[str, str]:
    out, err, shown = io.StringIO(), io.StringIO(), warnings.showwarning
    with (
        mock.patch.object(sys, "argv", ["sinkscope", *words]),
        mock.patch.object(sys, "stdin", io.StringIO("the cat\n")),
        mock.patch.object(subprocess, "call", return_value=0),  # no JupyterLab is started
    ):
        try:
            with guarded(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main()
        except SystemExit as leaving:
            return judged(leaving.code or 0, out.getvalue(), err.getvalue())
        except Hung:
            return UNCLEAR, "takes too long"
        except Exception as error:
            return UNCLEAR, blamed(error)
        finally:
            warnings.showwarning = shown
    return UNCLEAR, "main() came back"


def judged(code: Any, out: str, err: str) -> tuple[str, str]:
    """A success, or a mistake in one line."""
    if code == 0:
        return OK, ""
    told = [line for line in err.splitlines() if line and not line.startswith("sinkscope: warning:")]
    if code != 2 or "Traceback" in err or len(told) != 1 or not told[0].startswith("sinkscope: "):
        return UNCLEAR, f"exit code {code} with {err[:200]!r}"
    return REFUSED, told[0]
