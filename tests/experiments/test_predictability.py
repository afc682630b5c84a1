"""Sink mass beside what comes next, against logits and maps of float64 twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import SinkscopeError, capture, predictability
from tests.experiments import brute
from tests.support.zoo import build


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
def test_losses_entropies_and_mass_are_those_of_a_float64_twin(name):
    record = predictability(build(name), brute.texts(), 2, progress=False, text="a text")
    assert record.attrs["text"] == "a text" and record.attrs["first"] == 2
    for number, text in enumerate(brute.texts()):
        twin, length = brute.dense(name, text), len(text)
        found = record.isel(sequence=number)
        np.testing.assert_allclose(found.next_loss[: length - 1], twin.losses, atol=3e-4, rtol=1e-4)
        np.testing.assert_allclose(
            found.sink_mass.transpose("layer", "head", "query", "sink")[..., :length, :], twin.maps[..., :2], atol=2e-5
        )
        chances = brute.plain(build(name, dtype=torch.float64) if name != "gpt_oss" else build(name), text).softmax(-1)
        entropy = torch.special.entr(chances.double()).sum(-1)
        np.testing.assert_allclose(found.next_entropy[:length], entropy, atol=3e-4, rtol=1e-4)
        assert np.isnan(found.next_loss[length - 1 :]).all() and np.isnan(found.next_entropy[length:]).all()


def test_a_family_outside_the_attention_interface_is_measured_too():
    model, text = build("bloom"), brute.texts()[0]
    record = predictability(model, text[None], progress=False)
    np.testing.assert_allclose(
        record.next_loss[0, :-1], brute.losses(brute.plain(model, text), text), rtol=1e-4, atol=1e-4
    )


def test_text_longer_than_a_piece_has_the_entropies_of_all_its_queries():
    """Entropies are taken 256 queries at a time."""
    ids = torch.arange(300)[None] % 100 + 3
    model = build("llama")
    record = predictability(model, ids, progress=False)
    entropy = torch.special.entr(brute.plain(model, ids[0]).double().softmax(-1)).sum(-1)
    np.testing.assert_allclose(record.next_entropy[0], entropy, atol=3e-4)


def in_a_scope():
    model = build("llama")
    with capture(model):
        predictability(model, brute.texts(), progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: predictability(build("llama"), brute.texts(), 0), "first=0"),
        (lambda: predictability(build("llama"), brute.texts(), 53), "53 tokens has no query after its first 53"),
        (lambda: predictability(build("llama"), brute.texts()[0][:1][None]), "one token"),
        (lambda: predictability(build("llama").train(), brute.texts()), "training mode"),
        (lambda: predictability(build("llama").model, brute.texts()), "LlamaModel has no language head"),
        (lambda: predictability(build("llama"), [torch.tensor([1, 500, 3])]), "500 is outside the vocabulary"),
        (lambda: predictability(build("gpt2"), torch.ones(1, 600, dtype=torch.long)), "512 positions"),
        (in_a_scope, "carries a scope"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


def test_logits_that_are_not_finite_are_refused():
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.inf
    with pytest.raises(SinkscopeError, match=r"lm_head\.weight are not finite"):
        predictability(model, brute.texts(), progress=False)
