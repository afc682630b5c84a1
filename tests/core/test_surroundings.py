"""What acts on all models of a process is told, and is asked of the processes that compute for it."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.models.identity import identity
from sinkscope.models.surroundings import check_surroundings, surroundings
from tests.support.zoo import build, inputs

IDS = inputs("llama", batch=1, tokens=40)["input_ids"]
POW = Tensor.pow


def halved(module, *args):
    return args[0] / 2


def patched(monkeypatch, kind):
    """Change something for all models; the name by which it is told."""
    if kind == "a method of a class":
        monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", halved)
        return "LlamaMLP.forward"
    if kind == "a partial function of torch":
        monkeypatch.setattr(F, "silu", functools.partial(torch.relu))
        return "torch.nn.functional.silu"
    if kind == "another function of torch":
        monkeypatch.setattr(F, "silu", F.relu)
        return "torch.nn.functional.silu"
    monkeypatch.setattr(Tensor, "pow", lambda self, power: POW(self, power) * 4)
    return "Tensor.pow"


@pytest.mark.parametrize(
    "kind", ["a method of a class", "a partial function of torch", "another function of torch", "a method of tensors"]
)
def test_what_was_put_in_a_librarys_place_is_told_in_both(monkeypatch, kind):
    model = build("llama")
    before, plain = identity(model), surroundings()
    with torch.no_grad():
        logits = model(IDS).logits
    name = patched(monkeypatch, kind)
    with torch.no_grad():
        assert not torch.equal(model(IDS).logits, logits)
    now = surroundings()
    assert name in now.keys() - plain.keys()
    assert {key for key in now if now[key] != plain.get(key)} == {name}
    assert identity(model).keys() - before.keys() == {name}
    with pytest.raises(SinkscopeError, match=rf"not so in its workers: {name}; run with n_jobs=1"):
        check_surroundings(plain)


def test_a_process_is_like_itself_and_unlike_one_of_another_precision():
    here = surroundings()
    check_surroundings(here)
    traced = torch.fx.symbolic_trace(nn.Linear(2, 2))  # a class of its own, with code that was made for it
    check_surroundings(here)
    assert traced is not None
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(SinkscopeError, match=r"autocast \(cpu\)"):
        check_surroundings(here)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 2)
    try:
        with pytest.raises(SinkscopeError, match="forward hook on every module"):
            check_surroundings(here)
    finally:
        handle.remove()
    check_surroundings(here)


@pytest.mark.slow
def test_workers_that_do_not_compute_alike_are_refused_and_file_nothing(tmp_path, monkeypatch):
    model = build("llama")
    model.save_pretrained(tmp_path / "saved")
    grids = [
        dict(models=each, texts={"text": IDS}, policies=["dense"])
        for each in ({"tiny": model}, [str(tmp_path / "saved")])
    ]
    tables = [sinkscope.sweep(grid, n_jobs=2, progress=False) for grid in grids]
    assert tables[0].value.tolist() == sinkscope.sweep(grids[0], progress=False).value.tolist()
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", halved)
    for grid in grids:
        with pytest.raises(SinkscopeError, match=r"LlamaMLP\.forward; run with n_jobs=1"):
            sinkscope.sweep(grid, tmp_path / "run", n_jobs=2, progress=False)
    assert not list((tmp_path / "run" / "cells").iterdir())
    assert sinkscope.sweep(grids[0], tmp_path / "run", progress=False).value.tolist() != tables[0].value.tolist()


class Scaled(Tensor):
    """A tensor that holds another, and by what it is multiplied."""

    @staticmethod
    def __new__(cls, held, scale):
        return Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held, scale):
        self.held, self.scale = held, scale

    def __tensor_flatten__(self):
        return ["held"], {"scale": self.scale}

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].held, args[0].scale)
        plain = torch.utils._pytree.tree_map_only(Scaled, lambda each: each.held * each.scale, (args, kwargs or {}))
        return function(*plain[0], **plain[1])


def scaled(by):
    model = build("llama")
    part = model.model.layers[0].mlp.up_proj
    part.weight = nn.Parameter(Scaled(part.weight.detach(), by), requires_grad=False)
    return model


def test_how_a_tensor_is_made_of_others_is_a_part_of_the_identity():
    one, same, other = scaled(1.0), scaled(1.0), scaled(2.0)
    with torch.no_grad():
        assert not torch.equal(one(IDS).logits, other(IDS).logits)
    assert identity(one) == identity(same)
    assert identity(one)["weights"] != identity(other)["weights"]


def test_a_model_without_numbers_is_refused_by_that_wherever_it_is_asked_who_it_is(tmp_path):
    with torch.device("meta"):
        model = type(build("llama"))(build("llama").config).eval()
    whole = build("llama")
    with sinkscope.SinkCache(whole, 2, 14) as cache, torch.no_grad():
        whole(IDS, cache=cache)
        cache.save(tmp_path / "cache.safetensors")
    calls = [
        lambda: identity(model),
        lambda: sinkscope.sweep({"models": {"nothing": model}, "texts": {"text": IDS}}),
        lambda: sinkscope.measure(model, IDS, checkpoint=tmp_path / "kept"),
        lambda: sinkscope.SinkCache.load(tmp_path / "cache.safetensors", model),
    ]
    for call in calls:
        with pytest.raises(SinkscopeError, match="meta device, which holds no numbers"):
            call()


@pytest.mark.parametrize("word", ["high", "medium"])
def test_a_coarser_product_is_no_other_reading(word):
    model, usual = build("llama"), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(word)
    try:
        coarse = sinkscope.perplexity(model, IDS, [sinkscope.SinkWindow(2, 10)], progress=False)
    finally:
        torch.set_float32_matmul_precision(usual)
    fine = sinkscope.perplexity(model, IDS, [sinkscope.SinkWindow(2, 10)], progress=False)
    assert float(abs(coarse.nll - fine.nll).max()) < 0.2
