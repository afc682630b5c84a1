"""A long run that is killed or fails goes on where it was written last, and only there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import sinkscope.streaming.checkpoint as checkpoint_module
from sinkscope import SinkCache, SinkscopeError, SinkWindow, Window, open_record, perplexity
from sinkscope.hf.caches import with_cache
from sinkscope.streaming.readers import BlockReader
from sinkscope.tensors import _checksum
from tests.core.test_identity import OTHERS
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


@pytest.mark.slow
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
        with pytest.raises(SinkscopeError, match=r"was made with something else: (block was|seed was|the text is)"):
            perplexity(model, other, [Window(20)], checkpoint=tmp_path, **options)
    changed = build("llama")
    with torch.no_grad():
        changed.model.layers[1].self_attn.o_proj.weight[40:].zero_()
    with pytest.raises(SinkscopeError, match="it has other weights"):
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


# --- the file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def half_way(tmp_path, monkeypatch):
    """A run that stopped half-way: its arguments, and its file."""
    monkeypatch.setattr(checkpoint_module, "SECONDS", -1.0)
    model, ids = build("llama"), inputs("llama", tokens=160)["input_ids"]
    given = {"model": model, "ids": ids, "policies": [SinkWindow(4, 26)], "block": 8, "checkpoint": tmp_path}
    steps, blocks = BlockReader._logits, iter(range(10))
    monkeypatch.setattr(BlockReader, "_logits", lambda *each: (next(blocks), steps(*each))[1])
    with pytest.raises(RuntimeError):
        perplexity(**given)
    monkeypatch.setattr(BlockReader, "_logits", steps)
    return given, tmp_path / "sinks-4+26.safetensors"


def rewritten(path, change, whole=True):
    """The file with other texts beside its tensors; its checksum made anew where it is to be `whole`."""
    with safe_open(path, "pt") as stored:
        about, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    checksum = about.pop("checksum")
    change(about, tensors)
    told = _checksum(tensors, about) if whole else checksum
    save_file(tensors, path, metadata=about | {"checksum": told})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "old", "new"), [
    ("progress", '"done": 80', '"done": 96'), ("progress", '"done": 80', '"done": 16'),
    ("progress", '"batch": 0', '"batch": 1'), ("settings", '"block": "8"', '"block": "16"'),
    ("kind", "checkpoint 2", "checkpoint 3"), ("settings", '"config.rms_norm_eps": "1e-06"', '"config.a": "1"'),
])  # fmt: skip
def test_texts_that_were_changed_beside_the_numbers_are_refused(half_way, name, old, new):
    given, path = half_way
    whole = path.read_bytes()

    def change(about, tensors):
        assert old in about[name]
        about[name] = about[name].replace(old, new)

    rewritten(path, change, whole=False)
    with pytest.raises(SinkscopeError, match="is damaged: it is not what was saved"):
        perplexity(**given)
    path.write_bytes(whole)
    perplexity(**given)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [
    {"done": -8}, {"done": 8.0}, {"done": True}, {"done": 10**30}, {"batch": -1}, {"batch": 2}, {"batch": 0.5},
    {"seconds": -1.0}, {"seconds": float("nan")}, {"seconds": "1"},
])  # fmt: skip
def test_numbers_that_no_run_could_have_written_are_refused(half_way, numbers):
    given, path = half_way
    rewritten(path, lambda about, _: about.update(progress=json.dumps(json.loads(about["progress"]) | numbers)))
    with pytest.raises(SinkscopeError, match="says it is where no run can be"):
        perplexity(**given)


def test_losses_of_another_shape_are_refused(half_way):
    given, path = half_way
    rewritten(path, lambda _, tensors: tensors.update(losses=tensors["losses"][:, :-1].contiguous()))
    with pytest.raises(SinkscopeError, match="says it is where no run can be"):
        perplexity(**given)


def test_a_file_of_an_earlier_release_says_so(half_way):
    given, path = half_way
    with safe_open(path, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"settings": "{}", "progress": "{}", "checksum": "0123abcd"})
    with pytest.raises(SinkscopeError, match="is of an earlier release, which cannot be checked as a whole; delete it"):
        perplexity(**given)


def test_a_header_of_any_size_takes_no_memory(half_way):
    given, path = half_way
    for length in (10**12, 2**63, 20 * 2**20):
        path.write_bytes(length.to_bytes(8, "little") + b"{" * 100)
        with pytest.raises(SinkscopeError, match=f"damaged or torn .its header would take {length:,} bytes"):
            perplexity(**given)


@pytest.mark.slow
def test_a_cache_in_the_place_of_a_checkpoint_is_called_one(half_way):
    given, path = half_way
    with SinkCache(given["model"], 2, 5) as cache, torch.no_grad():
        given["model"](given["ids"], **with_cache(given["model"], cache))
        cache.save(path)
    with pytest.raises(SinkscopeError, match="is a sinkscope sink cache 2, and the checkpoint is looked for"):
        perplexity(**given)


@pytest.mark.slow
def test_the_user_s_own_files_stay(half_way):
    given, path = half_way
    own = [path.with_name(name) for name in (".writable", ".x.partial", ".sinkscope-mine.partial")]
    for file in own:
        file.write_text("mine")
    perplexity(**given)
    assert all(file.read_text() == "mine" for file in own) and len(list(path.parent.iterdir())) == 4


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rope_theta", "rms_norm_eps", "hidden_act", "head split", "a hook", "permuted"])
def test_a_model_that_became_another_is_named(half_way, change):
    given, _ = half_way
    make, words = OTHERS[change]
    with pytest.raises(SinkscopeError, match=words.strip("^$")):
        perplexity(**(given | {"model": make()}))
