"""Trials in processes of their own: they may be killed, hang, or take the interpreter down."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sinkscope
from sinkscope.errors import SinkscopeError

HOME = str(Path(sinkscope.__file__).parent)
WRITERS = ("record.py", "files.py", "saving.py", "tensors.py", "checkpoint.py", "kept.py", "runner.py")
WELL, REFUSED, UNCLEAR = 0, 3, 4
SECONDS = 60


def outcome(act: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> str:
    """Act in a forked child: "well", "refused" in one sentence, or what else happened."""
    child = os.fork()
    if not child:
        code = UNCLEAR
        try:
            signal.alarm(SECONDS)
            prepare()
            act()
            code = WELL
        except SinkscopeError as problem:
            code = REFUSED if "\n" not in str(problem) else UNCLEAR
        except BaseException:
            sys.settrace(None)
            traceback.print_exc()
        finally:
            sys.settrace(None)
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        return f"hung for {SECONDS} s"
    known = {WELL: "well", REFUSED: "refused", UNCLEAR: "unclear"}
    return (known | {-signal.SIGKILL: "killed", -signal.SIGTERM: "ended"}).get(code, f"died: {code}")


class Lines:
    """Counts the lines that run of the code that writes, and ends the process at the n-th of them, if there is one."""

    def __init__(self, last: int = -1, by: signal.Signals = signal.SIGKILL) -> None:
        self.count, self.last, self.by = 0, last, by

    def start(self) -> None:
        sys.settrace(self._enter)

    def _enter(self, frame: Any, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        return self._line if file.startswith(HOME) and file.endswith(WRITERS) else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            if self.count == self.last:
                os.kill(os.getpid(), self.by)
            self.count += 1
        return self._line


def lines_of(act: Callable[[], Any]) -> int:
    """How many lines of the code that writes it runs."""
    lines = Lines()
    lines.start()
    try:
        act()
    finally:
        sys.settrace(None)
    return lines.count


def full_at(size: int) -> Callable[[], None]:
    """No file of this process may grow beyond `size` bytes, as on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit
