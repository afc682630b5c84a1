"""Measurements of batches that were kept are those of one run, to the bit, and of nothing else."""

from __future__ import annotations

import os
import signal
from typing import ClassVar

import pytest
import torch
import xarray as xr

import sinkscope as S
from sinkscope.errors import SinkscopeError
from sinkscope.probes.base import PER_QUERY, Variable
from sinkscope.scope.observer import Observer
from tests.core.test_identity import OTHERS
from tests.support.naive_science import tiny
from tests.support.zoo import build, inputs

TEXTS = [*inputs("llama", 5, 30)["input_ids"], *inputs("llama", 2, 41, seed=6)["input_ids"]]
BATCH = 60  # tokens: two texts of 30, or one of 41
PROBES = [*S.FREE, S.EvictionEffect()]


class Mean(S.LayerProbe):
    """One that is averaged over the sequences."""

    makes: ClassVar = {"mean_lse": Variable(PER_QUERY, "nats", "mean of the log-sum-exp", averaged=True)}

    def observe(self, layer):
        return {"mean_lse": layer.lse}


def passes_of(model):
    """How many tokens each forward pass of the base reads; a list that grows."""
    seen = []

    def look(module, args, kwargs):
        seen.append(kwargs["input_ids"].numel() if "input_ids" in kwargs else args[0].numel())

    model.model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


def check_same(one, two):
    xr.testing.assert_identical(*(record.assign_attrs(date="") for record in (one, two)))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "gpt_oss", "mixtral"])
def test_what_was_kept_is_read_and_not_measured_again(family, tmp_path):
    model, probes = build(family), PROBES if family == "llama" else None
    whole = S.measure(model, TEXTS, probes, batch_tokens=BATCH)
    first = S.measure(model, TEXTS[:4], probes, batch_tokens=BATCH, checkpoint=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and first.sizes["sequence"] == 4
    check_same(whole, S.measure(model, TEXTS, probes, batch_tokens=BATCH, checkpoint=tmp_path))
    names, again = sorted(tmp_path.iterdir()), build(family)
    check_same(whole, S.measure(again, TEXTS, probes, batch_tokens=BATCH, checkpoint=tmp_path))
    assert len(names) == 5 and sorted(tmp_path.iterdir()) == names


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
@pytest.mark.parametrize("probe", [S.HiddenExtremes(), S.Maps(layers=[1], resolution=None)], ids=repr)
def test_what_was_kept_says_again_which_layers_attend(name, probe, tmp_path):
    texts = inputs("llama", 3, 20)["input_ids"]
    given = dict(probes=[probe], batch_tokens=20)
    whole = S.measure(tiny(name), texts, **given)
    for _ in range(2):  # measured, and read
        check_same(whole, S.measure(tiny(name), texts, **given, checkpoint=tmp_path))
    assert whole.attrs.get("layers_without_attention") == {"llama": None, "qwen3_next": "0, 2"}[name]


def test_averages_over_batches_are_those_of_one_run(tmp_path):
    model, texts = build("llama"), inputs("llama", 7, 30)["input_ids"]
    probes = [Mean(), S.Maps(resolution=8)]
    whole = S.measure(model, texts, probes, batch_tokens=BATCH)
    S.measure(model, texts[2:6], probes, batch_tokens=BATCH, checkpoint=tmp_path)
    resumed = S.measure(model, texts, probes, batch_tokens=BATCH, checkpoint=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    check_same(whole, resumed)


@pytest.mark.slow
def test_ctrl_c_finishes_the_batch_keeps_it_and_says_how_to_go_on(tmp_path, monkeypatch):
    model, seen = build("llama"), []
    whole = S.measure(model, TEXTS, PROBES, batch_tokens=BATCH)

    observe, sent = Observer._observe, []

    def interrupt(*given):
        if len(seen) == 3 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return observe(*given)

    monkeypatch.setattr(Observer, "_observe", interrupt)

    def count(*_):
        seen.append(1)

    hook = model.model.register_forward_pre_hook(count)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"what was done is kept in {tmp_path}, and running the same again"):
        S.measure(model, TEXTS, PROBES, batch_tokens=BATCH, checkpoint=tmp_path)
    assert len(seen) == 3 and len(list(tmp_path.iterdir())) == 3 and signal.getsignal(signal.SIGINT) is before
    check_same(whole, S.measure(model, TEXTS, PROBES, batch_tokens=BATCH, checkpoint=tmp_path))
    assert len(seen) == 5
    hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rope_theta", "rms_norm_eps", "hidden_act", "head split", "a hook", "permuted"])
def test_another_model_is_measured_anew(change, tmp_path):
    other = OTHERS[change][0]()
    S.measure(build("llama"), TEXTS, batch_tokens=BATCH, checkpoint=tmp_path)
    resumed = S.measure(other, TEXTS, batch_tokens=BATCH, checkpoint=tmp_path)
    check_same(resumed, S.measure(other, TEXTS, batch_tokens=BATCH))
    assert len(list(tmp_path.iterdir())) == 10


@pytest.mark.parametrize("policy", [S.SinkWindow(2, 8), S.Window(8), S.Evict([1, 2])])
def test_under_another_policy_texts_are_measured_anew(policy, tmp_path):
    model = build("llama")
    S.measure(model, TEXTS, [S.SinkMass()], batch_tokens=BATCH, checkpoint=tmp_path)
    resumed = S.measure(model, TEXTS, [S.SinkMass()], policy=policy, batch_tokens=BATCH, checkpoint=tmp_path)
    check_same(resumed, S.measure(model, TEXTS, [S.SinkMass()], policy=policy, batch_tokens=BATCH))
    assert len(list(tmp_path.iterdir())) == 10


def test_a_policy_that_names_places_beyond_the_texts_is_refused():
    with pytest.raises(SinkscopeError, match="names key 1000000000, and the longest text has 41 tokens"):
        S.measure(build("llama"), TEXTS, [S.SinkMass()], policy=S.Evict([10**9]))


@pytest.mark.slow
def test_a_file_that_is_damaged_or_of_another_batch_is_refused(tmp_path):
    model = build("llama")
    S.measure(model, TEXTS, batch_tokens=BATCH, checkpoint=tmp_path)
    one, two, *_ = sorted(tmp_path.iterdir())
    whole = one.read_bytes()
    for changed in (whole[:100], whole[:-40] + bytes(4) + whole[-36:], b""):
        one.write_bytes(changed)
        with pytest.raises(SinkscopeError, match=f"the measurements {one} is damaged"):
            S.measure(model, TEXTS, batch_tokens=BATCH, checkpoint=tmp_path)
    one.write_bytes(two.read_bytes())
    with pytest.raises(SinkscopeError, match="of other settings than its name says"):
        S.measure(model, TEXTS, batch_tokens=BATCH, checkpoint=tmp_path)
    one.write_bytes(whole)
    S.measure(model, TEXTS, batch_tokens=BATCH, checkpoint=tmp_path)


class Secret(Mean):
    """One whose numbers follow from what no code shows."""

    def observe(self, layer):
        return {"mean_lse": layer.lse * eval("1")}


def test_what_cannot_be_told_or_kept_is_refused_before_anything_runs(tmp_path):
    model = build("llama")
    passes = passes_of(model)
    with pytest.raises(SinkscopeError, match="measurements cannot be kept and resumed with the probe Secret: it uses"):
        S.measure(model, TEXTS[:5], [Secret()], checkpoint=tmp_path / "x")
    with pytest.raises(SinkscopeError, match="checkpoint= is for batches of texts"):
        S.measure(model, {"input_ids": torch.stack(TEXTS[:5])}, checkpoint=tmp_path / "x")
    assert passes == []
