"""The process that reads HDF5 first: it may hang, end or be left alone, and the next file is read all the same."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading

import h5py
import pytest

from sinkscope import SinkscopeError, hdf5_trial
from sinkscope.hdf5_trial import try_hdf5


@pytest.fixture(scope="module")
def whole() -> bytes:
    target = io.BytesIO()
    with h5py.File(target, "w") as file:
        file["numbers"] = [1.0, 2.0]
    return target.getvalue()


def process() -> subprocess.Popen[bytes]:
    return hdf5_trial._trials[os.getpid()].process


def test_one_process_reads_one_file_after_another(whole):
    try_hdf5(whole, 10**6)
    first = process().pid
    with pytest.raises(SinkscopeError):
        try_hdf5(whole[:300], 10**6)
    try_hdf5(whole, 10**6)
    assert process().pid == first


@pytest.mark.slow
def test_a_read_that_does_not_end_is_given_up(whole, monkeypatch):
    try_hdf5(whole, 10**6)
    stopped = process()
    monkeypatch.setattr(hdf5_trial, "PATIENCE", 0.1)
    os.kill(stopped.pid, signal.SIGSTOP)
    with pytest.raises(SinkscopeError, match="was not read within 0 seconds"):
        try_hdf5(whole, 10**6)
    assert stopped.poll() == -signal.SIGKILL
    monkeypatch.undo()
    try_hdf5(whole, 10**6)


@pytest.mark.slow
def test_a_read_that_ends_its_process_does_not_end_this_one(whole):
    try_hdf5(whole, 10**6)
    doomed = process()
    os.kill(doomed.pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, doomed.kill)
    killer.start()
    with pytest.raises(SinkscopeError, match="ended the process that read it"):
        try_hdf5(whole, 10**6)
    killer.join()
    try_hdf5(whole, 10**6)


def test_an_interrupt_leaves_no_answer_for_the_next_file(whole, monkeypatch):
    try_hdf5(whole, 10**6)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hdf5_trial._Trial, "answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            try_hdf5(whole[:300], 10**6)
    try_hdf5(whole, 10**6)


@pytest.mark.slow
def test_it_ends_with_the_process_that_started_it():
    code = (
        "import os, sys, signal; from sinkscope import hdf5_trial;"
        "trial = hdf5_trial._Trial(); print(trial.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        assert parent.stdout.read() == ""  # it held this pipe too, were it still there
    with pytest.raises(ProcessLookupError):
        for _ in range(1000):
            os.kill(number, 0)
            threading.Event().wait(0.01)
