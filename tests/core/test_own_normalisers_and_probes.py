"""Normalisers and probes written outside the package work as the built-in ones do, or are refused by name."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr

import sinkscope
from sinkscope import SinkscopeError, attached, capture, perplexity
from tests.core.own import Hard, Squared, losses_of, naive_softpick, naive_sparsemax, naive_squared
from tests.support import naive_slots
from tests.support.zoo import build, inputs

# --- normalisers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("normaliser", "weights"),
    [(sinkscope.Sparsemax(), naive_sparsemax), (sinkscope.Softpick(), naive_softpick), (Squared(), naive_squared)],
    ids=["sparsemax", "softpick", "squared"],
)
def test_a_normaliser_is_its_weights(normaliser, weights, monkeypatch):
    monkeypatch.setattr("sinkscope.attention.attend.BLOCK_ENTRIES", 2 * 4 * 50 * 7)  # several blocks of rows
    model, ids = build("llama"), inputs("llama", tokens=50)["input_ids"]
    expected = naive_slots.run(model, ids, weights=weights)
    naive_slots.check(model, ids, expected, normaliser=normaliser)
    record = perplexity(model, ids, [sinkscope.Dense()], block=13, normaliser=normaliser)
    np.testing.assert_allclose(record.nll[0, :, 1:], losses_of(expected[0], ids), atol=2e-4)
    with torch.no_grad(), attached(model, normaliser=normaliser):
        cache = sinkscope.hf.caches.growing_cache(model)
        given = sinkscope.hf.caches.with_cache(model, cache)
        parts = [model(part, **given).logits for part in (ids[:, :30], *ids[:, 30:].split(1, 1))]
    torch.testing.assert_close(torch.cat(parts, 1).double(), expected[0], atol=1e-4, rtol=1e-4)


def test_softpick_of_large_and_of_negative_scores_is_finite_and_may_give_nothing_at_all():
    scores = torch.tensor([[[[300.0, 299.0, -torch.inf], [-3.0, -200.0, -torch.inf], [0.0, 0.0, 0.0]]]])
    weights = sinkscope.Softpick().weights(scores)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([1.0, 0.0, 0.0]).index_add(0, torch.tensor([0, 1]),
        torch.tensor([-1.0, 1.0]) * torch.e**-1 / (1 + torch.e**-1)))  # fmt: skip
    assert (weights[0, 0, 1:] == 0).all()


@pytest.mark.slow
def test_a_normaliser_acts_in_its_heads_and_under_policies():
    model, ids = build("llama"), inputs("llama", tokens=40)["input_ids"]
    placed = sinkscope.Sparsemax(layers=[1], heads=[0, 2])
    expected = naive_slots.run(model, ids, weights=naive_sparsemax, layers=[1], heads=[0, 2])
    naive_slots.check(model, ids, expected, normaliser=placed)
    kept = lambda at: [key for key in range(at + 1) if key >= at - 8]  # noqa: E731
    for policy, seen, cached in (
        (sinkscope.Window(8), kept, False),
        (sinkscope.SinkWindow(2, 8), lambda at: sorted({0, 1, *kept(at)} & set(range(at + 1))), True),
    ):
        expected = naive_slots.run(model, ids, weights=naive_sparsemax, kept=seen, in_cache=cached)
        naive_slots.check(model, ids, expected, policy=policy, normaliser=sinkscope.Sparsemax())


def test_weights_redefined_below_a_quicker_form_are_what_counts():
    model, ids = build("llama"), inputs("llama", tokens=30)["input_ids"]
    expected = naive_slots.run(model, ids, weights=lambda scores: (scores == scores.amax(-1, keepdim=True)).double())
    naive_slots.check(model, ids, expected, normaliser=Hard())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda scores: scores[..., :-1].softmax(-1), "weights have that shape"),
        (lambda scores: 3, "a int for scores"),
        (lambda scores: scores.softmax(-1) * torch.nan, "NaN or infinite"),
        (lambda scores: scores, "NaN or infinite"),
        (lambda scores: torch.ones_like(scores) / scores.shape[-1], "gives weight to hidden keys"),
        (lambda scores: scores.softmax(-2).nan_to_num(), "depend on the other queries"),
        (
            lambda scores: (scores * (2 if scores.shape[-2] > 9 else 1)).softmax(-1),
            "on how many other queries there are",
        ),
        (lambda scores: F.dropout(scores.softmax(-1), 0.3), "asked again, they are others"),
        (lambda scores: scores.softmax(0).nan_to_num(), "depend on the other texts"),
        (lambda scores: scores.softmax(1).nan_to_num(), "depend on the other heads"),
        (lambda scores: scores.softmax(-1) / scores.shape[-1], "depend on how many keys are hidden"),
        (lambda scores: scores.softmax(-1) * (1 + 1j), "gave complex weights"),
        (lambda scores: scores[:, :1].softmax(-1).expand(scores.shape), "depend on the other heads"),
        (lambda scores: scores[-1:].softmax(-1).expand(scores.shape), "depend on the other texts"),
        (
            lambda scores: (scores + 2.0 * (torch.arange(scores.shape[-1]) >= 10)).softmax(-1),
            "depend on the order of the keys",
        ),
    ],
)
def test_a_normaliser_that_is_none_is_refused_before_anything_runs(weights, message):
    class Own(sinkscope.Normaliser):
        def weights(self, scores):
            return weights(scores)

    model = build("llama")
    with pytest.raises(SinkscopeError, match=message):
        attached(model, normaliser=Own())
    with pytest.raises(SinkscopeError, match=message):
        perplexity(model, inputs("llama", tokens=12)["input_ids"], normaliser=Own())


# --- probes -----------------------------------------------------------------------------------------------------------


class Kurtosis(sinkscope.HiddenProbe):
    makes: ClassVar = {"kurtosis": sinkscope.Variable(("sequence", "token"), units="1", description="of hidden states")}

    def observe_hidden(self, hidden):
        centred = hidden.double() - hidden.double().mean(-1, keepdim=True)
        return {"kurtosis": (centred**4).mean(-1) / (centred**2).mean(-1) ** 2}


class Nearest(sinkscope.TileProbe):
    """Attention on the query's own key."""

    makes: ClassVar = {"own_mass": sinkscope.Variable(("sequence", "head", "query"), units="1")}

    def start(self, layer):
        return torch.zeros_like(layer.lse)

    def add(self, total, layer, tile):
        rows = torch.arange(layer.rows)[tile.rows]
        columns = torch.arange(layer.length)[tile.columns]
        total[:, tile.heads, tile.rows] += (tile.probabilities * (rows[:, None] == columns)).sum(-1)

    def finish(self, total, layer):
        return {"own_mass": total}


@pytest.mark.slow
def test_probes_of_ones_own_are_recorded_with_what_they_declare(tmp_path):
    model, ids = build("llama"), inputs("llama")["input_ids"]
    with torch.no_grad(), capture(model, [Kurtosis(), Nearest(), sinkscope.Maps(resolution=None)]) as scope:
        states = model(ids, output_hidden_states=True).hidden_states
    record = scope.record
    hidden = states[1].double().numpy()
    centred = hidden - hidden.mean(-1, keepdims=True)
    expected = (centred**4).mean(-1) / (centred**2).mean(-1) ** 2
    np.testing.assert_allclose(record.kurtosis.sel(layer=0), expected, rtol=1e-4)
    assert record.kurtosis.attrs["units"] == "1" and "hidden states" in record.kurtosis.attrs["long_name"]
    np.testing.assert_allclose(record.own_mass, np.diagonal(record.attention_map.values, axis1=-2, axis2=-1), atol=1e-6)
    path = sinkscope.save_record(record, tmp_path / "own.nc")
    xr.testing.assert_allclose(sinkscope.open_record(path).kurtosis, record.kurtosis)


@pytest.mark.slow
def test_every_variable_says_its_units_and_dimensions():
    record = sinkscope.measure(
        build("gpt_oss"), inputs("gpt_oss")["input_ids"], [*sinkscope.ALL, sinkscope.OutputNorm()]
    )
    for name, held in record.data_vars.items():
        assert held.attrs["units"] and held.attrs["long_name"], name
        assert held.attrs["dims"].split() == list(held.dims), name
    whole = sinkscope.sink_mass(record)
    np.testing.assert_allclose(sinkscope.sink_mass(record.sel(layer=1)).values, whole.sel(layer=[1]).values)
    xr.testing.assert_allclose(sinkscope.value_drain(record.sel(layer=1)), sinkscope.value_drain(record).sel(layer=[1]))


@pytest.mark.parametrize(
    ("makes", "given", "message"),
    [
        ({}, {"other": torch.zeros(2, 40)}, "gave `other`, which it does not declare"),
        (
            {"one": sinkscope.Variable(("sequence", "token"))},
            {"one": torch.zeros(2)},
            r"gave `one` as torch.float32 \(2,\)",
        ),
        ({"one": sinkscope.Variable(("sequence", "token"))}, {"one": 3}, "gave `one` as int"),
        ({"one": sinkscope.Variable(("sequence", "token"))}, {"one": torch.zeros(2, 40) * 1j}, "as torch.complex64"),
        ({"one": sinkscope.Variable(("sequence", "token"))}, {"one": torch.full((2, 40), 1 << 31)}, "holds 32 bits"),
        (
            {"one": sinkscope.Variable(("sequence", "token"))},
            {"one": torch.full((2, 40), 4_000_000_000, dtype=torch.uint32)},
            "as torch.uint32 .* dense, as float32 or int32",
        ),
        (
            {"one": sinkscope.Variable(("sequence", "token"))},
            {"one": torch.eye(2, 40).to_sparse()},
            "dense, as float32",
        ),
        (
            {"one": sinkscope.Variable(("sequence", "token"))},
            {"one": torch.quantize_per_tensor(torch.eye(2, 40), 0.1, 0, torch.quint8)},
            "dense, as float32",
        ),
        ({"one": sinkscope.Variable(("sequence", "token"))}, {"one": torch.zeros(2, 40, device="meta")}, "dense, as"),
        ({"one": sinkscope.Variable(("sequence", "token"))}, None, "gave a NoneType; expected a mapping"),
        ({"one": ("sequence", "token")}, {}, "expected a sinkscope.Variable"),
        ({"one": sinkscope.Variable(("sequence", "token", "token"))}, {}, "each needs a name of its own"),
    ],
)
def test_what_a_probe_did_not_declare_is_refused(makes, given, message):
    own = type("Own", (sinkscope.HiddenProbe,), {"makes": makes, "observe_hidden": lambda self, hidden: given})
    model = build("llama")
    with pytest.raises(SinkscopeError, match=message):
        sinkscope.measure(model, inputs("llama")["input_ids"], [own()])
    assert not any(module._forward_hooks for module in model.modules())


def test_whole_numbers_in_one_layer_and_others_in_the_next_are_refused():
    class Own(sinkscope.LayerProbe):
        makes: ClassVar = {"one": sinkscope.Variable(("sequence", "head"))}
        layers = 0

        def observe(self, layer):
            self.layers += 1
            given = torch.full(layer.lse.shape[:2], 0.75)
            return {"one": given.long() if self.layers == 1 else given}

    with pytest.raises(SinkscopeError, match="`one` is made of whole numbers in one place and of others in another"):
        sinkscope.measure(build("llama"), inputs("llama")["input_ids"], [Own()])


def test_a_probe_that_changes_what_the_model_goes_on_with_is_refused():
    class Centred(sinkscope.HiddenProbe):
        makes: ClassVar = {"norm": sinkscope.Variable(("sequence", "token"))}

        def observe_hidden(self, hidden):
            hidden -= hidden.mean(-1, keepdim=True)
            return {"norm": hidden.norm(dim=-1)}

    class Unit(sinkscope.LayerProbe):
        makes: ClassVar = {"length": sinkscope.Variable(("sequence", "kv_head", "key"))}

        def observe(self, layer):
            return {"key_length": layer.value.mul_(2).norm(dim=-1)}

    class UnitValues(Unit):
        makes: ClassVar = {"key_length": sinkscope.Variable(("sequence", "kv_head", "key"))}

    model, ids = build("llama"), inputs("llama")["input_ids"]
    for probe in (Centred(), UnitValues()):
        with pytest.raises(SinkscopeError, match="changed the model's own states in place"):
            sinkscope.measure(model, ids, [probe])
    with pytest.raises(SinkscopeError, match=r"the record itself has .*length"):
        sinkscope.measure(model, ids, [Unit()])


def test_a_hidden_probe_looks_at_the_layers_it_wants():
    class Second(Kurtosis):
        def wants(self, layer):
            return layer == 1

    record = sinkscope.measure(build("llama"), inputs("llama")["input_ids"], [Second()])
    assert record.kurtosis[:, 0].isnull().all() and record.kurtosis[:, 1].notnull().all()


def test_a_probe_of_no_kind_is_refused():
    class Nothing(sinkscope.probes.Probe):
        pass

    with pytest.raises(SinkscopeError, match="Nothing is a probe of no kind"):
        capture(build("llama"), [Nothing()])


def test_a_variable_that_was_not_measured_names_its_probe():
    record = sinkscope.measure(build("llama"), inputs("llama")["input_ids"], [Kurtosis()])
    with pytest.raises(SinkscopeError, match=r"the record has no sink_mass: measure with the probe SinkMass\(\)"):
        sinkscope.sink_mass(record)
