"""A long run that is killed or fails goes on where it was written last, and only there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import sinkscope.streaming.checkpoint as checkpoint_module
from sinkscope import SinkscopeError, SinkWindow, Window, open_record, perplexity
from tests.support.zoo import build, inputs

KILLED = """
    import sys
    import sinkscope.streaming.checkpoint as checkpoint
    from sinkscope import Dense, Recompute, SinkWindow, perplexity, save_record
    from tests.support.zoo import build, inputs

    checkpoint.SECONDS = 0
    model, ids = build("llama"), inputs("llama", tokens=200)["input_ids"]
    ways = [Dense(), Recompute(30), SinkWindow(4, 26)]
    save_record(perplexity(model, ids, ways, block=8, samples=60, checkpoint=sys.argv[1]), sys.argv[1] + "/record.nc")
"""


@pytest.mark.slow
def test_a_run_killed_half_way_resumes_to_the_bit(tmp_path):
    def start(folder):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    for policy in ("recompute-30", "sinks-4+26"):
        run = start(tmp_path / "killed")
        while not (tmp_path / "killed" / f"{policy}.safetensors").exists():
            assert run.poll() is None
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    assert start(tmp_path / "killed").wait() == start(tmp_path / "whole").wait() == 0
    resumed, whole = (open_record(tmp_path / name / "record.nc") for name in ("killed", "whole"))
    np.testing.assert_array_equal(resumed.nll, whole.nll)


def test_a_run_that_failed_goes_on_where_it_was_written_last(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "SECONDS", 0)
    model, ids = build("llama"), inputs("llama", tokens=160)["input_ids"]
    policy, passes = SinkWindow(4, 26), []
    whole = perplexity(model, ids, [policy], block=8)

    def fail_at_tenth(*_):
        passes.append(1)
        if len(passes) == 10:
            raise RuntimeError("the machine is on fire")

    hook = model.register_forward_pre_hook(fail_at_tenth)
    with pytest.raises(RuntimeError, match="fire"):
        perplexity(model, ids, [policy], block=8, checkpoint=tmp_path)
    resumed = perplexity(model, ids, [policy], block=8, checkpoint=tmp_path)
    assert len(passes) == 9 + 1 + 11  # of 20 blocks, nine were kept
    np.testing.assert_array_equal(resumed.nll, whole.nll)
    perplexity(model, ids, [policy], block=8, checkpoint=tmp_path)
    assert len(passes) == 21  # all was there
    hook.remove()


def test_a_checkpoint_that_is_torn_or_of_other_settings_is_refused(tmp_path):
    model, ids = build("llama"), inputs("llama", tokens=60)["input_ids"]
    perplexity(model, ids, [Window(20)], checkpoint=tmp_path)
    for other, options in ((ids, {"block": 8}), (ids, {"seed": 1}), (ids.flip(1), {})):
        with pytest.raises(SinkscopeError, match="was made with"):
            perplexity(model, other, [Window(20)], checkpoint=tmp_path, **options)
    changed = build("llama")
    with torch.no_grad():
        changed.model.layers[1].self_attn.o_proj.weight[40:].zero_()
    with pytest.raises(SinkscopeError, match="was made with weights"):
        perplexity(changed, ids, [Window(20)], checkpoint=tmp_path)
    file = tmp_path / "window-20.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SinkscopeError, match="damaged"):
        perplexity(model, ids, [Window(20)], checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkscopeError, match="cannot write a checkpoint"):
        perplexity(build("llama"), inputs("llama")["input_ids"], [Window(8)], checkpoint=tmp_path / "file" / "run")
