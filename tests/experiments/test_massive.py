"""Massive activations set by hand: a model in whose first layer they were planted, and hooks written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import SetMassive, SinkscopeError, run_interventions
from sinkscope.experiments.intervention import Conditions
from tests.experiments import brute
from tests.experiments.brute import START
from tests.support.zoo import build

PLANTED, DIMENSION, SECOND = 1, 5, 40
CONDITIONS = Conditions(START, 4, 0)


def planted(name: str = "llama"):
    """A model that gives token 1 two activations of thousands, from the embedding on."""
    model = build(name)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # gpt2 ties it to the embedding
    with torch.no_grad():
        model.get_input_embeddings().weight[PLANTED, [DIMENSION, SECOND]] = torch.tensor([4000.0, -2500.0])
    return model


def texts(*places: int):
    """Texts in which token 1 stands at these places, and nowhere else."""
    rows = [text.clamp(min=2) for text in brute.texts()]
    for row in rows:
        row[list(places)] = PLANTED
    return rows


def layers_of(model):
    return model.model.layers if hasattr(model, "model") else model.transformer.h


def with_hook(model, ids, layer: int, change) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a text, and the hidden states [token, dim] behind a layer, with a change of these in between."""
    kept = []

    def hook(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        kept.append(hidden[0].clone())
        change(hidden[0])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layers_of(model)[layer].register_forward_hook(hook)
    logits = brute.plain(model, ids)
    handle.remove()
    return brute.losses(logits, ids), kept[0].numpy()


def run(model, ids, *chosen, **options):
    return run_interventions(model, ids, list(chosen), start=START, progress=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_zero_sets_both_planted_dimensions_and_nothing_else(name):
    model, ids = planted(name), texts(0, 20)
    record = run(model, ids, SetMassive())

    def zero(hidden):
        hidden[0, [DIMENSION, SECOND]] = 0
        hidden[20, [DIMENSION, SECOND]] = 0

    for number, text in enumerate(ids):
        expected, _ = with_hook(model, text, 0, zero)
        found = record.nll.sel(policy="massive dimensions to zero").isel(sequence=number)
        np.testing.assert_allclose(found[START + 1 : len(text)], expected[START:], atol=2e-4)
        plain = brute.losses(brute.plain(model, text), text)[START:]
        assert abs(expected[START:] - plain).max() > 0.02


@pytest.mark.slow
def test_mean_is_one_constant_over_all_places_and_texts():
    model, ids = planted(), texts(0, 20)
    record = run(model, ids, SetMassive(layers=[1], mode="mean"))
    states = [with_hook(model, text, 1, lambda hidden: None)[1] for text in ids]
    means = [np.mean([state[place, dim] for state in states for place in (0, 20)]) for dim in (DIMENSION, SECOND)]
    assert np.ptp([state[20, DIMENSION] for state in states]) > 0.01  # else nothing is tested

    def set_both(hidden):
        hidden[[0, 20], DIMENSION], hidden[[0, 20], SECOND] = float(means[0]), float(means[1])

    for number, text in enumerate(ids):
        expected, _ = with_hook(model, text, 1, set_both)
        found = record.nll.sel(policy="massive dimensions to mean behind layer 1").isel(sequence=number)
        np.testing.assert_allclose(found[START + 1 : len(text)], expected[START:], atol=2e-4)


@pytest.mark.slow
def test_the_mean_of_one_constant_value_changes_nothing():
    """The first token sees itself alone, so behind the first layer it is the same in all texts."""
    record = run(planted(), texts(0), SetMassive(mode="mean"), SetMassive(mode="zero"))
    nll = record.nll.sel(policy=["nothing", "massive dimensions to mean", "random dimensions to mean"]).values
    np.testing.assert_array_equal(nll[1], nll[0])
    np.testing.assert_array_equal(nll[2], nll[0])  # nor does that of any other dimension
    zero = record.nll.sel(policy="massive dimensions to zero")
    assert np.nanmax(abs(zero.values - nll[0])) > 0.02


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_the_control_sets_as_many_other_dimensions_of_the_same_tokens(mode):
    model, ids, seen = planted(), texts(0, 20), []
    handle = layers_of(model)[1].register_forward_pre_hook(lambda module, args: seen.append(args[0][0].clone()))
    record = run(model, ids, SetMassive(mode=mode), draws=2)
    handle.remove()
    states = seen[-2 * (len(record.policy) + 1) :]  # what layer 1 was given in each arm and draw, text after text
    place = record.policy.values.tolist().index(f"random dimensions to {mode}")
    changed_dimensions = []
    for number in range(4):
        before, after = states[number % 2], states[2 * place + number]
        tokens, dimensions = (before != after).nonzero().unique(dim=0).T
        assert set(tokens.tolist()) <= {0, 20} and 20 in tokens
        assert len(set(dimensions.tolist())) == 2 and not set(dimensions.tolist()) & {DIMENSION, SECOND}
        changed_dimensions.append(sorted(set(dimensions.tolist())))
    assert len(set(map(tuple, changed_dimensions))) == 4  # drawn anew for each text and in each draw
    for number, dimensions in enumerate(changed_dimensions):
        for dimension in dimensions:
            mean = np.mean([states[text][token, dimension] for text in range(2) for token in (0, 20)])
            expected = mean if mode == "mean" else 0.0
            assert states[2 * place + number][20, dimension] == pytest.approx(expected, abs=1e-6)


def test_what_is_massive_follows_magnitude_and_ratio():
    model, ids = planted(), texts(0)
    _, state = with_hook(model, ids[0], 0, lambda hidden: None)
    median = np.median(abs(state))
    one = SetMassive(magnitude=3000, ratio=10).prepare(model, ids, CONDITIONS)
    assert [site.watched for site in one.sites[0]] == [DIMENSION]
    both = SetMassive(magnitude=100, ratio=2000 / median).prepare(model, ids, CONDITIONS)
    assert [site.watched for site in both.sites[0]] == [DIMENSION, SECOND]
    other = SetMassive(magnitude=100, ratio=3500 / median).prepare(model, ids, CONDITIONS)
    assert [site.watched for site in other.sites[0]] == [DIMENSION]
    assert list(SetMassive().prepare(model, ids, CONDITIONS).sites) == [0]  # the first layer that has any
    assert list(SetMassive(layers=[1, 0]).prepare(model, ids, CONDITIONS).sites) == [1, 0]
    names = {each.name for each in (SetMassive(), SetMassive(mode="mean"), SetMassive(ratio=5), SetMassive([0]))}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SetMassive(mode="half"), "mode='half' is unknown"),
        (lambda: SetMassive(magnitude=0), "magnitude=0"),
        (lambda: SetMassive(ratio=float("nan")), "ratio=nan"),
        (lambda: SetMassive(layers=[]), r"layers=\[\]"),
        (lambda: run(planted(), texts(0), SetMassive(layers=[2])), "layer 2 of .*layers 0 to 1"),
        (lambda: run(build("llama"), brute.texts(), SetMassive()), "no activation above 100 .* in this model"),
        (lambda: run(planted(), texts(0), SetMassive([0, 1], magnitude=1e9)), "no activation above .* behind layer 0"),
        (
            lambda: run(build("llama"), brute.texts(), SetMassive(magnitude=1e-6, ratio=1e-6)),
            "64 of 64 dimensions are massive",
        ),
    ],
)
def test_where_there_is_nothing_massive_it_is_said(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


def test_weights_that_are_not_finite_are_named():
    model = planted()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(SinkscopeError, match=r"q_proj\.weight are not finite"):
        run(model, texts(0), SetMassive())
