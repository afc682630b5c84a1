"""One call with arguments of any kind, guarded and judged."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks
from sinkscope.figures.matplotlib_renderer import PaperFigure
from tests.fuzz import world
from tests.fuzz.hostile import anything, drawn, hostile, told
from tests.fuzz.ordinary import Make, instance, ordinary
from tests.fuzz.subjects import Subject
from tests.support.model_state import state_of

OK, REFUSED, UNCLEAR, NO_CASE = "ok", "refused", "unclear", ""
MEMORY = 3 * 2**30  # bytes that a case may take beyond what is taken before it
SECONDS = 40
LONGEST = 700  # characters of a sentence


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        subject: its name.
        case: the arguments, in words.
        verdict: ok, refused or unclear.
        said: the message, or what is wrong.
    """

    subject: str
    case: str
    verdict: str
    said: str = ""


class Hung(BaseException):
    """A case that takes too long."""


Case = dict[str, tuple[str, Make]]


def cases(subject: Subject) -> st.SearchStrategy[Case]:
    """One argument or two that are hostile, and the others ordinary."""
    if not subject.parameters:
        return st.just({})
    names = {each.name: each for each in subject.parameters}
    pools = {name: hostile(subject, each) for name, each in names.items()}

    def values(name: str) -> st.SearchStrategy[tuple[str, Make]]:
        some = [st.sampled_from(sorted(anything(names[name]).items())), drawn(names[name]).map(_constant)]
        if pools[name]:
            some = [*[st.sampled_from(sorted(pools[name].items()))] * 3, *some]
        return st.one_of(some)

    chosen = st.lists(st.sampled_from(sorted(names)), min_size=1, max_size=2, unique=True)
    return chosen.flatmap(lambda some: st.fixed_dictionaries({name: values(name) for name in some}))


def _constant(value: Any) -> tuple[str, Make]:
    return told(value), lambda _: value


def examine(subject: Subject, examples: int) -> list[Outcome]:
    """The ordinary case, and so many others."""
    found = [attempt(subject, {})]
    if not (subject.parameters and examples):
        return found

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(cases(subject))
    def tried(case: Case) -> None:
        found.append(attempt(subject, case))

    tried()
    return found[:1] + [each for each in found[1:] if each.verdict != NO_CASE]


def attempt(subject: Subject, case: Case) -> Outcome:
    """Call it, use what it gives, and look at what it left behind."""
    said = ", ".join(f"{name}={shown}" for name, (shown, _) in case.items())
    world.saved_model()  # which notes something in the configuration
    before = state_of(world.model())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        verdict, why = _called(subject, case, folder)
        left = left_behind(folder)
    if verdict != UNCLEAR and left:
        verdict, why = UNCLEAR, f"left {left} behind"
    if verdict != UNCLEAR and state_of(world.model()) != before:
        verdict, why = UNCLEAR, "the model is not as it was"
    return Outcome(subject.name, said, verdict, why)


def left_behind(folder: Path) -> list[str]:
    """Files that were being written."""
    return [path.name for path in folder.rglob(".*") if path.name != ".png"]  # matplotlib's for a file of no name


def _called(subject: Subject, case: Case, folder: Path) -> tuple[str, str]:
    with contextlib.ExitStack() as stack:
        try:
            arguments, options, own = _arguments(subject, case, folder)
            if subject.owner is not None:
                own = [instance(subject, folder)]
                stack.callback(_closed, own[0])
        except Exception:
            return NO_CASE, ""  # as where a record that lacks something cannot be made
        kept = _contents(folder)
        try:
            with guarded(folder):
                made = subject.call(*own, *arguments, **options)
                stack.callback(_closed, made)
                used(made, folder)
        except SinkscopeError as error:
            return judged(str(error), _contents(folder), kept)
        except Hung:
            return UNCLEAR, f"takes more than {SECONDS} seconds"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return UNCLEAR, blamed(error)
    return OK, ""


def _arguments(subject: Subject, case: Case, folder: Path) -> tuple[list[Any], dict[str, Any], list[Any]]:
    arguments: list[Any] = []
    options: dict[str, Any] = {}
    for parameter in subject.parameters:
        make = case[parameter.name][1] if parameter.name in case else ordinary(subject, parameter)
        if make is None:
            continue
        if parameter.kind is Parameter.VAR_KEYWORD:
            options["note"] = make(folder)
        elif parameter.kind is Parameter.VAR_POSITIONAL:
            arguments.append(make(folder))
        else:
            options[parameter.name] = make(folder)
    return arguments, options, []


def judged(message: str, now: dict[str, str], before: dict[str, str]) -> tuple[str, str]:
    """Whether a refusal says what is wrong in a sentence, and left the files alone."""
    if "\n" in message or not 15 <= len(message) <= LONGEST or not message.rstrip().endswith((".", ")", "?")):
        return UNCLEAR, f"no sentence: {message[:300]!r} ({len(message)} characters)"
    if any(now.get(path) != held for path, held in before.items()):
        return UNCLEAR, f"changed a file, and then: {message}"
    return REFUSED, message


def blamed(error: BaseException) -> str:
    """The exception, and the last line of ours that it came through."""
    ours = [each for each in traceback.extract_tb(error.__traceback__) if "/sinkscope/" in each.filename]
    at = f"{ours[-1].filename.rpartition('/sinkscope/')[2]}:{ours[-1].lineno}" if ours else "nowhere of ours"
    first = f"{ours[0].filename.rpartition('/sinkscope/')[2]}:{ours[0].lineno}" if ours else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]} [{first} .. {at}]"


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Not more than so much memory and time, nothing printed, and files in a folder of its own."""

    def stop(*_: Any) -> None:
        raise Hung

    limits, here = resource.getrlimit(resource.RLIMIT_AS), os.getcwd()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    alarm = signal.signal(signal.SIGALRM, stop)
    os.chdir(folder)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, limits[1]))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        out, err = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with out, err, warnings.catch_warnings(action="ignore"):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        os.chdir(here)


def _contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _closed(thing: Any) -> None:
    if callable(close := getattr(thing, "close", None)) and not isinstance(thing, (type, xr.Dataset, xr.DataArray)):
        close()


def used(made: Any, folder: Path) -> None:
    """What is accepted has to work, or to be refused when it is used."""
    model, ids = world.model(), world.ids()
    if isinstance(made, type):
        return
    if isinstance(made, sinkscope.Policy):
        sinkscope.perplexity(model, ids, [made], samples=2, progress=False)
    elif isinstance(made, sinkscope.Normaliser):
        _run(sinkscope.attached(model, normaliser=made))
    elif isinstance(made, sinkscope.probes.Probe):
        _run(sinkscope.capture(model, [made]))
    elif isinstance(made, sinkscope.Intervention):
        sinkscope.run_interventions(model, ids, [made], start=10, tokenizer=world.tokenizer(), progress=False)
    elif type(made).__name__ == "Scope":
        _run(made)
    elif isinstance(made, (sinkscope.SinkCache, sinkscope.ScoredCache)):
        world.read(made)
    elif isinstance(made, xr.Dataset):
        sinkscope.save_record(made, folder / "used.nc")
    elif isinstance(made, PaperFigure):
        made.savefig(io.BytesIO(), format="svg")
    elif isinstance(made, marks.Drawing):
        sinkscope.figures.plotly_figure(made)
        sinkscope.figures.matplotlib_figure(made).savefig(io.BytesIO(), format="svg")
    elif isinstance(made, sinkscope.Item):
        sinkscope.Report(world.record("measured"), items=[made]).notes  # noqa: B018
    elif isinstance(made, sinkscope.Section):
        sinkscope.Report(world.record("measured"), sections=[made]).notes  # noqa: B018
    elif isinstance(made, sinkscope.lab.Arm):
        pass
    elif isinstance(made, Iterator):
        for _, _ in zip(range(4), made, strict=False):
            pass


def _run(scope: Any) -> None:
    try:
        with scope, torch.no_grad():
            scope.model(world.ids())
        if scope.probes:
            scope.record  # noqa: B018
    except SinkscopeError:
        raise
