"""Layers on several devices, as device_map="auto" puts them on several GPUs: the numbers of the undivided model.

The second device is one of memory (tests/support/two_devices.py). It is made known to a whole process, and so lives in
one of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import sinkscope as S
from sinkscope.attention import attend
from sinkscope.hf.caches import with_cache
from sinkscope.models.weights import weights_hash
from sinkscope.streaming.readers import BlockReader
from tests.core.test_placement import captured, explored, generated, numbers, under_slots
from tests.support.zoo import build, inputs

IDS = inputs("llama", 1, 40)["input_ids"]
PADDED = {"input_ids": inputs("llama", 2, 20)["input_ids"], "attention_mask": torch.ones(2, 20).long()}
PADDED["attention_mask"][1, :7] = 0
CLOSE = 1e-5  # other kernels of attention run on the second device


def padded(model):
    with S.capture(model) as scope:
        model(**PADDED)
    return scope.record


def padded_answers(model):
    with S.SinkCache(model, 2, 6) as cache:
        return model.generate(**PADDED, **with_cache(model, cache), max_new_tokens=8, do_sample=False)


def saved(model):
    path = Path(tempfile.mkdtemp()) / "cache"
    with S.SinkCache(model, 2, 6) as cache:
        yield model(IDS, **with_cache(model, cache)).logits
        cache.save(path)
    with S.SinkCache.load(path, model) as cache:
        yield model(IDS[:, :1], **with_cache(model, cache)).logits


def resumed(model):
    for policy in (S.Dense(), S.SinkWindow(2, 6), S.HeavyHitters(12, 6)):
        first, second = (BlockReader(model, IDS, policy, block=8) for _ in range(2))
        steps = first.steps()
        next(steps)
        second.resume(first.done, {name: state.cpu() for name, state in first.state().items()})
        steps.close()
        for step in second.steps():
            yield step.losses


POLICIES = [
    S.Dense(),
    S.SinkWindow(4, 12),
    S.Recompute(8),
    S.HeavyHitters(12, 6),
    S.PerHead({(1, 2): S.SinkWindow(2, 6)}, default=S.Dense()),
]
WITHIN = {
    "slots": under_slots,
    "answers": generated,
    "interventions": lambda model: S.run_interventions(model, IDS, [S.EvictKeys()], start=20, sinks=2, progress=False),
}
ANYWHERE = {
    "capture": captured,
    "padded": padded,
    "padded answers": padded_answers,
    "saved": saved,
    "cost": lambda model: S.cost(model, S.SinkWindow(4, 12), 40).flops,
}
READ = {
    "perplexity": lambda model: S.perplexity(model, IDS, POLICIES, progress=False, block=16),
    "resumed": resumed,
    "explorer": lambda model: [each for each in explored(model) if isinstance(each, np.ndarray)][:2],
}


def check(family: str, *there: str) -> None:
    """Compare a model with some parts on the second device with the undivided one."""
    from tests.support.two_devices import TwoDevices, spread

    kernels, chosen = attend.fused_kernel, ANYWHERE | (READ | WITHIN if family != "gptj" else {})
    attend.fused_kernel = lambda device, dtype: kernels(device, dtype) if device == "cpu" else None
    with TwoDevices(), torch.no_grad():
        whole, parts = build(family, "eager"), spread(build(family, "eager"), there)
        assert weights_hash(whole) == weights_hash(parts)
        for name, act in chosen.items():
            one, two = numbers(act(whole)), numbers(act(parts))
            assert one.keys() == two.keys() and one, name
            for each in one:
                size = np.abs(one[each]).max(initial=1) if one[each].dtype.kind == "f" else 1
                if one[each].dtype.kind in "fiu":
                    np.testing.assert_allclose(two[each], one[each], atol=CLOSE * np.nan_to_num(size, nan=100))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "llama model.layers.1",
        "llama model.layers.0",
        "llama model.layers.1 model.norm lm_head",
        "gemma3 model.layers.1 model.layers.3",
        "gptj transformer.h.1",
    ],
)
def test_layers_on_two_devices_give_the_numbers_of_the_undivided_model(case):
    program = f"import sys; from tests.core.test_devices import check; check(*{case.split()!r})"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.slow
def test_what_is_on_two_devices_may_not_meet():
    """The second device itself."""
    program = """
import pytest, torch
from tests.support.two_devices import THERE, TwoDevices
with TwoDevices():
    here, there = torch.ones(2), torch.ones(2, device=THERE)
    assert there.device == THERE and (there + 1).device == THERE and (there.cpu() + here).tolist() == [2, 2]
    for meet in (lambda: here + there, lambda: there[torch.tensor([0])], lambda: torch.cat([here, there])):
        with pytest.raises(RuntimeError, match="same device"):
            meet()
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
