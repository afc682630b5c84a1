"""Probes of one's own that write, declare or give what no record can hold are refused by name; others are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import SinkscopeError, Variable, attached, capture, measure
from sinkscope.analysis import variables
from sinkscope.hf.caches import growing_cache, with_cache
from sinkscope.probes import HiddenProbe, LayerProbe, Measured, TileProbe
from tests.support.zoo import build, inputs

TOKEN = Variable(("sequence", "token"))
BIN = Variable(("sequence", "bin"))


def ids():
    return inputs("llama", tokens=40)["input_ids"]


def hidden(variable=TOKEN, give=lambda states: states.mean(-1), name="own", **members):
    """A probe of hidden states that gives this."""
    own = {"makes": {name: variable}, "observe_hidden": lambda self, states: {name: give(states)}}
    return type("Own", (HiddenProbe,), own | members)()


class Tiles(TileProbe):
    """Writes where it is told to."""

    makes: Mapping = {"own": Variable(("sequence", "head"))}
    start_with = add_with = finish_with = staticmethod(lambda *given: None)

    def start(self, layer):
        self.start_with(layer)
        return torch.zeros(layer.lse.shape[:2])

    def add(self, total, layer, tile):
        self.add_with(tile)

    def finish(self, total, layer):
        self.finish_with(layer)
        return {"own": total}


class Layers(LayerProbe):
    makes: Mapping = {"own": Variable(("sequence", "head", "query"))}

    def observe(self, layer):
        layer.key.div_(2)
        return {"own": layer.lse}


def writing(**members):
    return type("Own", (Tiles,), {name: staticmethod(act) for name, act in members.items()})()


def by_numpy(states, given):
    """What is given, and the states halved where no tensor notices."""
    states.numpy()[:] /= 2
    return given


WRITERS = {
    "probabilities": writing(add_with=lambda tile: tile.probabilities.pow_(2)),
    "logarithms": writing(add_with=lambda tile: tile.log_probabilities.zero_()),
    "key in start": writing(start_with=lambda layer: layer.key.div_(2)),
    "value in finish": writing(finish_with=lambda layer: layer.value.div_(2)),
    "key": type("Own", (Layers,), {})(),
    "key by NumPy": writing(start_with=lambda layer: layer.key.numpy().sort(-2)),
    "query by NumPy": type(
        "Own", (Layers,), {"observe": lambda self, layer: {"own": by_numpy(layer.query, layer.lse)}}
    )(),
    "tile by NumPy": writing(add_with=lambda tile: tile.log_probabilities.numpy().fill(0)),
    "hidden by NumPy": hidden(give=lambda states: by_numpy(states, states.mean(-1))),
    "hidden": hidden(give=lambda states: states.mul_(2).mean(-1)),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("probe", WRITERS.values(), ids=WRITERS)
def test_a_probe_that_writes_into_what_it_is_shown_is_refused(probe, mode):
    model = build("llama")
    refused = pytest.raises(SinkscopeError, match="Own changed the model's own states in place")
    with mode(), refused, attached(model, probes=[probe]):
        model(ids())


def test_inference_mode_changes_no_measurement():
    model, found = build("llama"), []
    for mode in (torch.no_grad, torch.inference_mode):
        cache = growing_cache(model)
        with mode(), capture(model, [*sinkscope.FREE, sinkscope.Entropy(), sinkscope.Received()]) as scope:
            for part in ids().split([30, 10], 1):
                model(part, **with_cache(model, cache))
        found.append(scope.record)
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-6)


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        ({"sink_mass": np.arange(3)}, "Own has coordinates called 'sink_mass'"),
        ({"own": np.arange(3)}, "Own has coordinates called 'own'"),
        ({"layer": np.array([7, 8])}, "Own has coordinates called 'layer'"),
        ({"head": np.arange(9)}, "Own has coordinates called 'head'"),
        ({"sequence": np.arange(2)}, "Own has coordinates called 'sequence'"),
        ({"sink": np.arange(4)}, "Own has coordinates called 'sink'"),
        ({"threshold": 2.0}, "'threshold': 2.0; give a 1-D array"),
        ([3], r"Own has \[3\] for `coordinates`"),
        ({"bin": np.arange(5)}, "Own has 5 coordinates 'bin' for 4 entries"),
    ],
)
def test_coordinates_replace_and_relabel_nothing(coordinates, message):
    own = hidden(BIN, lambda states: states.mean(1)[:, :4], coordinates=coordinates)
    with pytest.raises(SinkscopeError, match=message):
        measure(build("llama"), ids(), [sinkscope.SinkMass(4), own])


def test_coordinates_of_its_own_are_kept():
    own = hidden(BIN, lambda states: states.mean(1)[:, :2], coordinates={"bin": [0.5, 2.0], "threshold": np.arange(3)})
    record = measure(build("llama"), ids(), [sinkscope.SinkMass(4), own])
    assert record.bin.values.tolist() == [0.5, 2.0] and record.threshold.dims == ("threshold",)


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (hidden(give=lambda states: states.mean(-1)[:1]), "1 entries along 'sequence', and there are 2"),
        (hidden(give=lambda states: states.mean(-1)[:, :5]), "with 5 entries along 'token', and there are 40"),
        (
            type("Own", (LayerProbe,), {
                "makes": {"own": Variable(("sequence", "head"))},
                "observe": lambda self, layer: {"own": layer.key[:, :, 0, 0]},
            })(),
            "with 2 entries along 'head', and there are 4",
        ),
        (hidden(give=lambda states: states.double().mean(-1) * 1e300), "Own gave numbers beyond 3e38 for `own`"),
        (hidden(BIN, lambda states: Measured(states.mean(1)[:, :4], {"bin": np.arange(3)})), "3 coordinates"),
        (hidden(BIN, lambda states: Measured(states.mean(1)[:, :4], {"bum": np.arange(4)})), "4 coordinates along"),
        (hidden(BIN, lambda states: Measured(states.mean(1)[:, :4], {"bin": np.zeros(4)})), "give different ones"),
    ],
)  # fmt: skip
def test_arrays_of_other_sizes_or_ranges_are_refused_and_not_padded(probe, message):
    with pytest.raises(SinkscopeError, match=message):
        measure(build("llama"), ids(), [sinkscope.SinkMass(4), probe])


@pytest.mark.parametrize("large", [False, True])
def test_a_buffer_used_again_in_the_next_layer_is_copied(large, monkeypatch):
    if large:
        monkeypatch.setattr("sinkscope.scope.collect.OWN_PAGES", 10)
        monkeypatch.setattr("sinkscope.scope.declarations.LARGE", 10)
    kept = torch.zeros(2, 40)
    again = measure(build("llama"), ids(), [hidden(give=lambda states: kept.copy_(states.mean(-1)))])
    np.testing.assert_array_equal(again.own, measure(build("llama"), ids(), [hidden()]).own)


def test_one_number_for_each_text_and_layer_is_kept_and_adds_up_over_forward_passes():
    model, own = build("llama"), hidden(Variable(("sequence",), summed=True), lambda states: states.sum((1, 2)))
    record = measure(model, ids(), [own])
    assert record.own.dims == ("sequence", "layer")
    np.testing.assert_allclose(
        record.own, measure(model, ids(), [hidden(give=lambda x: x.sum(-1))]).own.sum("token"), rtol=1e-3
    )
    with torch.no_grad(), capture(model, [own]) as scope:
        given = with_cache(model, growing_cache(model))
        for part in ids().split(20, 1):
            model(part, **given)
    np.testing.assert_allclose(scope.record.own, record.own, rtol=1e-3)


def test_a_mean_over_sequences_needs_one_length():
    own, texts = hidden(Variable(("sequence", "token"), averaged=True)), ids()
    np.testing.assert_allclose(
        measure(build("llama"), texts, [own]).own,
        measure(build("llama"), texts, [hidden()]).own.mean("sequence"),
        atol=1e-6,
    )
    with pytest.raises(SinkscopeError, match="`own` is averaged over sequences, which are not of one length"):
        measure(build("llama"), [texts[0], texts[1, :30]], [own])


@pytest.mark.parametrize(
    ("name", "variable", "message"),
    [
        ("head", TOKEN, "declares `head` with the dimensions"),
        ("query", TOKEN, "declares `query` with the dimensions"),
        ("layer", TOKEN, "declares `layer` with the dimensions"),
        ("sink", TOKEN, "Own makes `sink`, and SinkMass has a dimension of that name"),
        ("a/b", TOKEN, "'a/b', which names no variable"),
        ("", TOKEN, "'', which names no variable"),
        (3, TOKEN, "declares 3, which names no variable"),
        ("own", Variable(("sequence", 3)), "a tuple of names"),
        ("own", Variable("sequence"), "a tuple of names"),
        ("own", Variable(None), "a tuple of names"),
        ("own", Variable(("sequence", "token"), units=None), "units and description as words"),
    ],
)
def test_what_no_record_can_hold_is_refused_before_anything_runs(name, variable, message):
    with pytest.raises(SinkscopeError, match=message):
        capture(build("llama"), [sinkscope.SinkMass(4), hidden(variable, name=name)])


@pytest.mark.parametrize("makes", [None, ["own"], property(lambda self: {"own": TOKEN})])
def test_makes_of_another_kind_disturbs_no_other_sentence(makes):
    own = hidden(makes=makes)
    if isinstance(makes, property):
        assert "own" in measure(build("llama"), ids(), [own])
    else:
        with pytest.raises(SinkscopeError, match="for `makes`; give a mapping"):
            capture(build("llama"), [own])
    assert "measure with the probe SinkMass()" in variables.advice("sink_mass")


def test_one_class_with_two_parameters_is_two_probes_where_it_makes_two_variables():
    @dataclass(frozen=True)
    class Power(HiddenProbe):
        power: int = 2

        @property
        def makes(self):
            return {f"power_{self.power}": TOKEN}

        def observe_hidden(self, states):
            return {f"power_{self.power}": states.pow(self.power).mean(-1)}

    assert {"power_2", "power_3"} <= set(measure(build("llama"), ids(), [Power(2), Power(3)]))
    with pytest.raises(
        SinkscopeError, match=r"SinkMass is given twice, as SinkMass\(first=1\) and SinkMass\(first=4\)"
    ):
        capture(build("llama"), [sinkscope.SinkMass(1), sinkscope.SinkMass(4)])


@pytest.mark.parametrize("way", ["numpy", "data"])
def test_a_probe_that_writes_to_the_weights_past_torch_is_named(way):
    model = build("llama")
    weight = model.model.layers[0].mlp.up_proj.weight

    def write(states):
        (weight.detach().numpy() if way == "numpy" else weight.data)[0] = 0
        return states.mean(-1)

    with pytest.raises(SinkscopeError, match="Own changed the model's weights, so the model is another one now"):
        measure(model, ids(), [hidden(give=write)])
    assert measure(model, ids(), [hidden()]).own.notnull().all()
