"""A long run that is interrupted finishes its block, keeps what is done and says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from sinkscope import Dense, SinkWindow, ablate, perplexity
from sinkscope.interrupts import Terminated, finishing_blocks
from sinkscope.streaming.readers import BlockReader
from tests.support.zoo import build, inputs

IDS = inputs("llama", batch=1, tokens=160)["input_ids"]
SIGNALS = (signal.SIGINT, signal.SIGTERM)
WAYS = [Dense(), SinkWindow(4, 26)]


@pytest.fixture(autouse=True)
def handlers():
    """Those that were there before are there afterwards."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def sending(monkeypatch, number, at, times=1):
    """Count blocks, and send a signal from inside one of them."""
    read, blocks = BlockReader._logits, []

    def counted(self, start, stop):
        blocks.append(start)
        if len(blocks) == at:
            for _ in range(times):
                os.kill(os.getpid(), number)
                signal.getsignal(number)  # Python runs handlers between two steps
        return read(self, start, stop)

    monkeypatch.setattr(BlockReader, "_logits", counted)
    return blocks


@pytest.mark.slow
def test_ctrl_c_finishes_the_block_keeps_it_and_says_how_to_go_on(tmp_path, monkeypatch):
    model = build("llama")
    whole = perplexity(model, IDS, WAYS, block=8)
    blocks = sending(monkeypatch, signal.SIGINT, at=25)  # the fifth block of the second policy
    with pytest.raises(KeyboardInterrupt, match=rf"what was done is kept in {tmp_path}, and running the same again"):
        perplexity(model, IDS, WAYS, block=8, checkpoint=tmp_path)
    assert len(blocks) == 25 and not model._forward_hooks
    resumed = perplexity(model, IDS, WAYS, block=8, checkpoint=tmp_path)
    assert len(blocks) == 40  # of twenty blocks each
    np.testing.assert_array_equal(resumed.nll, whole.nll)


def test_a_second_ctrl_c_does_not_wait_for_the_block(tmp_path, monkeypatch):
    model, blocks = build("llama"), sending(monkeypatch, signal.SIGINT, at=5, times=2)
    with pytest.raises(KeyboardInterrupt, match="what was done is kept"):
        perplexity(model, IDS, WAYS, block=8, checkpoint=tmp_path)
    assert list(tmp_path.iterdir()) == [] and len(blocks) == 5


def test_without_a_checkpoint_ctrl_c_acts_at_once_and_says_nothing(monkeypatch):
    model, blocks = build("llama"), sending(monkeypatch, signal.SIGINT, at=5)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        perplexity(model, IDS, WAYS, block=8)
    assert len(blocks) == 5


def test_a_handler_that_lets_the_program_run_on_gets_no_half_record(tmp_path, monkeypatch):
    heard, before = [], signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        sending(monkeypatch, signal.SIGTERM, at=5)
        with pytest.raises(Terminated, match="what was done is kept"):
            perplexity(build("llama"), IDS, WAYS, block=8, checkpoint=tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [1] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_cells_that_are_interrupted_are_kept(tmp_path, monkeypatch):
    model, given = build("llama"), dict(sinks=(0, 1, 2), cache_size=16, block=8, resamples=20)
    whole = ablate(model, IDS, **given)
    blocks = sending(monkeypatch, signal.SIGINT, at=30)
    with pytest.raises(
        KeyboardInterrupt, match=f"is kept in {tmp_path}, and running the same again goes on from there"
    ):
        ablate(model, IDS, **given, folder=tmp_path)
    assert len(blocks) == 30 and len(list(tmp_path.iterdir())) == 2
    assert ablate(model, IDS, **given, folder=tmp_path)["ppl"].equals(whole["ppl"]) and len(blocks) == 60


@pytest.mark.slow
def test_what_somebody_chose_not_to_hear_is_not_heard_and_other_threads_hang_nothing_up(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with finishing_blocks("kept") as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert stop.asked is None
    finally:
        signal.signal(signal.SIGINT, before)
    seen = []
    model = build("llama")
    thread = threading.Thread(target=lambda: seen.append(perplexity(model, IDS, WAYS, block=8, checkpoint=tmp_path)))
    thread.start()
    thread.join()
    assert seen[0].nll.notnull().any()


COMMAND = """
import os, sys
import sinkscope
from sinkscope.cli import main
from sinkscope.streaming.readers import BlockReader
from tests.support.zoo import build, inputs

sinkscope.load = lambda *_, **__: (build("llama"), None)
sinkscope.read_tokens = lambda *_, **__: inputs("llama", batch=1, tokens=160)["input_ids"]
read, blocks, number = BlockReader._logits, [], int(sys.argv.pop())

def counted(self, start, stop):
    blocks.append(start)
    if len(blocks) == 5 and number:
        os.kill(os.getpid(), number)
    return read(self, start, stop)

BlockReader._logits = counted
try:
    main()
finally:
    print(len(blocks))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["perplexity --policies sinks --block 8 --cache 30", "ablate --cache 30 --sinks 1 2 3 4 5 6"]
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_says_so_in_one_sentence_and_goes_on(command, number, code, tmp_path):
    def run(number):
        words = [*command.split(), "--quiet", "--out", str(tmp_path / "out"), str(int(number))]
        done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True)
        return done.returncode, int(done.stdout), done.stderr

    stopped, blocks, said = run(number)
    kept = tmp_path / "out" / ("checkpoints" if "perplexity" in command else "cells")
    assert stopped == code and blocks == 5 and len(list(kept.iterdir())) == (1 if "perplexity" in command else 5)
    assert said == (
        f"sinkscope: interrupted; what was done is kept in {kept}, and running the same again goes on from there.\n"
    )
    assert run(0) == (0, 15 if "perplexity" in command else 1, "")
