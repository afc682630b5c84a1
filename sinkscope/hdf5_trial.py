"""The bytes of an HDF5 file, tried in a process of its own before this one reads them.

The HDF5 library takes a damaged or a hostile file at its word: it can go round in circles, unpack a few kilobytes to
all of memory, or end its process. What a process of its own got through, within a time and a memory, this one reads the
same way. That process is started once, waits for the next file, and ends with this one. It is no sandbox.
"""

from __future__ import annotations

import atexit
import importlib
import io
import json
import os
import select
import struct
import subprocess
import sys
import threading
from typing import IO, Any

from sinkscope.errors import SinkscopeError, first_line

STARTING = 120.0  # seconds that Python and h5py may take to start on a busy machine
PATIENCE = 30.0  # seconds for a file, and one more for each so many bytes
PER_SECOND = 2 * 2**20
FILTERS = {1: "deflate", 2: "shuffle", 3: "checksum"}  # of chunks, as HDF5 numbers them
SLACK = 2**28  # bytes of memory, beside the file and what it says that it takes
STRING = 100  # bytes that a short string takes in Python
_HEAD = struct.Struct("<QQ")


def try_hdf5(data: bytes, most: int) -> None:
    """Read all there is in an HDF5 file, in another process, and throw it away.

    Args:
        data: the file.
        most: bytes that it may take when it is unpacked.

    Raises:
        SinkscopeError: it cannot be read, holds what no record holds, takes too much memory or time, or ends the
            process that reads it.
    """
    with _lock:
        trial = _trials.get(os.getpid())  # a forked process has its parent's, which it must not talk to
        if trial is None or trial.process.poll() is not None:
            trial = _trials[os.getpid()] = _Trial()
        try:
            refusal = trial.ask(data, most)
        except BaseException:  # also an interrupt: what it says next would be the answer to this file
            trial.end()
            del _trials[os.getpid()]
            raise
    if refusal:
        raise SinkscopeError(refusal)


class _Trial:
    """The process, and the two pipes to it."""

    def __init__(self) -> None:
        path = os.pathsep.join(each for each in sys.path if each)
        command = [sys.executable, "-P", "-m", __name__]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                process_group=0,  # Ctrl-C is not meant for it
            )
        except OSError as problem:
            raise SinkscopeError(
                f"the process that tries records cannot be started ({first_line(problem)})."
            ) from problem
        if self.answer(STARTING) != "":
            self.end()
            raise SinkscopeError("the process that tries records did not start; is there memory for one more?")

    def ask(self, data: bytes, most: int) -> str:
        """Why the file is refused; nothing where it is not."""
        assert self.process.stdin is not None
        patience = PATIENCE + len(data) / PER_SECOND
        try:
            self.process.stdin.write(_HEAD.pack(len(data), most))
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended, and answers nothing
        found = self.answer(patience)
        if found is None:
            ended = self.process.poll() is not None
            why = "ended the process that read it" if ended else f"was not read within {patience:.0f} seconds"
            raise SinkscopeError(f"it {why}")
        return found

    def answer(self, patience: float) -> str | None:
        """Its next line; None where it ended, or says nothing for so many seconds."""
        pipe = self.process.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], patience)[0]:
            return None
        line = pipe.readline()
        if not line.endswith(b"\n"):
            self.process.wait()
            return None
        return str(json.loads(line))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # bytes that it never took


_trials: dict[int, _Trial] = {}
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


@atexit.register
def _end() -> None:
    trial = _trials.pop(os.getpid(), None)
    if trial is not None:
        trial.end()


def serve(asked: IO[bytes], answered: IO[bytes]) -> None:
    """Try one file after the other, until there is no more."""
    importlib.import_module("h5py")  # before the memory is limited

    _say(answered, "")
    while len(head := asked.read(_HEAD.size)) == _HEAD.size:
        size, most = _HEAD.unpack(head)
        data = asked.read(size)
        try:
            refusal = _refusal(data, most)
        except MemoryError:
            refusal = f"it takes more than {most:,} bytes of memory"
        del data
        _say(answered, refusal)


def _say(answered: IO[bytes], words: str) -> None:
    answered.write(json.dumps(words).encode() + b"\n")
    answered.flush()


def _limit_memory(most: int) -> None:
    """Let this process have so many bytes more than it has, where the system can see to that (Linux)."""
    import resource

    try:
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * resource.getpagesize() + most
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    except (OSError, ValueError):
        pass  # what the file says of its size is looked at all the same


def _refusal(data: bytes, most: int) -> str:
    import h5py

    try:
        _limit_memory(SLACK + 4 * len(data))
        with h5py.File(io.BytesIO(data), "r") as file:
            taken = _attributes(file)
            for name in file:
                if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                    return f"it holds a link to elsewhere ({name!r})"
                member = file[name]
                if not isinstance(member, h5py.Dataset):
                    return f"it holds a {type(member).__name__.lower()} ({name!r})"
                properties = member.id.get_create_plist()
                filters = {properties.get_filter(number)[0] for number in range(properties.get_nfilters())}
                if member.external or member.is_virtual or not filters <= FILTERS.keys():
                    return f"its {name!r} is stored as no record is"
                taken += (
                    int(member.nbytes) + _attributes(member) + STRING * int(member.size) * (member.dtype.kind == "O")
                )
                if taken > most:
                    return f"it takes more than {most:,} bytes of memory"
            _limit_memory(SLACK + 4 * len(data) + 2 * taken)  # a chunk can unpack to more than it says
            for name in file:
                file[name][()]
    except MemoryError:
        raise
    except Exception as problem:  # what h5py raises depends on how the file is broken
        return first_line(problem)
    return ""


def _attributes(member: Any) -> int:
    """Bytes of what is said about it, all of which is read."""
    return sum(
        int(getattr(value, "nbytes", len(value) if hasattr(value, "__len__") else 8)) for value in member.attrs.values()
    )


if __name__ == "__main__":
    out = os.dup(1)  # what the library prints is no answer
    os.dup2(2, 1)
    with os.fdopen(out, "wb") as answers:
        serve(sys.stdin.buffer, answers)
