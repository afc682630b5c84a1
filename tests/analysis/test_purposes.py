"""Kinds of heads, gates, depth, spikes and reach, on planted cases and against brute force."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope
from sinkscope.attention.attend_layer import PLAIN
from sinkscope.attention.masks import CausalMask
from sinkscope.errors import SinkscopeError
from sinkscope.hf.tiny import tiny_model
from sinkscope.scope.interface import observed_layer
from sinkscope.scope.lazy_mask import Sight
from tests.support.zoo import build


def _ids(tokens=60, batch=3, seed=5):
    return torch.randint(3, 120, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def _planted(tokens=64, dim=8, width=24):
    """A layer of four heads: a no-op, a broadcast, a sink that is neither, and uniform attention."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.zeros(1, 4, tokens, dim), torch.zeros(1, 4, tokens, dim)
    query[:, :3, :, 0], key[:, :3, 0, 0] = 10.0, 10.0
    value = torch.randn(1, 4, tokens, dim, generator=generator)
    value[0, 0, 0] = 0
    value[0, 1, 0] *= 20
    value[0, 2, 0] *= 0.35
    query[:, 2, ::12, 0] = 0.0  # some of whose queries look elsewhere
    _, layer = observed_layer(query, key, value, Sight(CausalMask(0), 0, 0, None), weighing=PLAIN)
    projection = torch.linalg.qr(torch.randn(4, width, dim, generator=generator)).Q
    return replace(layer, projection=projection)


def _record(layer):
    made = sinkscope.SinkPurpose().observe(layer)
    return xr.Dataset(
        {name: (("sequence", "layer", "head"), np.asarray(each)[:, None]) for name, each in made.items()},
        coords={
            "sequence": [0],
            "layer": [0],
            "head": np.arange(4),
            "token": np.arange(64),
            "length": ("sequence", [64]),
        },
    )


def test_planted_heads_are_what_they_were_made():
    table = sinkscope.purposes(_record(_planted()))
    assert table["kind"].tolist() == ["no-op", "broadcast", "neither", "no sink"]
    assert table["sink_norm_ratio"][0] == pytest.approx(0, abs=1e-6)
    assert table["output_stable_rank"][1] == pytest.approx(1, abs=0.05)
    assert table["sink_key"].tolist()[:3] == [0, 0, 0]
    assert table["agreement"].tolist() == [1] * 4
    # uniform attention holds on to the first key from two queries: the null
    assert table["sink_share"][3] == table.attrs["null_share"] == 2 / 64


@pytest.mark.parametrize(("mass", "queries"), [(0.5, 2), (0.3, 3), (0.25, 4), (0.01, 64)])
def test_the_null_of_a_sink_counts_the_queries_that_see_few_keys(mass, queries):
    table = sinkscope.purposes(sinkscope.measure(build("llama"), _ids(tokens=64), [sinkscope.SinkPurpose(mass)]))
    assert queries == (1 / np.arange(1, 65) >= mass).sum()
    assert table.attrs["null_share"] == queries / 64 and table.attrs["mass"] == pytest.approx(mass)


def test_a_head_that_hands_on_nothing_is_a_no_op_that_loses_nothing(tmp_path):
    model, heads = build("llama"), (0, 2)  # of layer 1, with one key-value head
    width = model.config.hidden_size // model.config.num_attention_heads
    model.model.layers[1].self_attn.v_proj.weight.data[:width] = 0
    record = sinkscope.measure(model, _ids(), [sinkscope.SinkPurpose(), sinkscope.Reach(2, 8)])
    dead = record.sel(layer=1).isel(head=slice(*heads), reach_sinks=0, reach_window=0)
    assert (dead.sink_norm_ratio == 0).all() and (dead.stream_error == 0).all()
    gates = sinkscope.head_gates(record)
    assert gates.shape == (2, 2) and gates[1, 0] == 0 and (gates[0] > 0).all()
    np.testing.assert_allclose(np.loadtxt(sinkscope.save_head_gates(gates, tmp_path / "gates.tsv")), gates, atol=1e-6)


def test_a_hybrid_model_has_gates_of_its_attention_layers_alone():
    record = sinkscope.measure(tiny_model("qwen3_next"), _ids(), [sinkscope.Reach(2, 8), sinkscope.Compression()])
    assert record["layer"].values.tolist() == [0, 1, 2, 3]
    assert sinkscope.head_gates(record)["layer"].values.tolist() == [1, 3]
    assert set(sinkscope.reach_table(record)["layer"]) == {1, 3}


def test_thresholds_decide_and_the_curve_tells_how_much():
    record = _record(_planted())
    assert sinkscope.purposes(record, event=0.02)["kind"].tolist()[3] != "no sink"
    assert sinkscope.purposes(record, broadcast=1000)["kind"].tolist()[1] == "neither"
    curve = sinkscope.purpose_sensitivity(record)
    assert set(curve["threshold"]) == {"event", "no_op", "broadcast", "rank"}
    np.testing.assert_allclose(curve.groupby(["threshold", "factor"])["heads"].sum(), 1)
    usual = curve[curve["factor"] == 1].groupby("kind")["heads"].mean()
    assert (usual == 0.25).all()
    for factors in ((), 0, (1, -1)):
        with pytest.raises(SinkscopeError, match="factors"):
            sinkscope.purpose_sensitivity(record, factors)
    for given in ({"event": 1.0}, {"no_op": 0.6}, {"rank": 0.5}, {"broadcast": -1}):
        with pytest.raises(SinkscopeError):
            sinkscope.purposes(record, **given)


@pytest.mark.parametrize("name", ("llama", "mistral_sliding", "gpt_oss", "gemma3"))
def test_the_closed_form_of_reach_is_what_the_bands_give(name):
    sinks, windows = (0, 1, 4), (1, 7, 64)
    probes = [sinkscope.SinkMass(4), sinkscope.DistanceProfile(), sinkscope.Reach(sinks, windows)]
    record = sinkscope.measure(build(name), _ids(), probes)
    found = sinkscope.reach(record, sinks, windows)
    np.testing.assert_allclose(found.values, record.reach.values, rtol=1e-4, atol=1e-5)
    with pytest.raises(SinkscopeError, match="SinkMass"):
        sinkscope.reach(record, 5, 4)


def test_uniform_attention_has_the_reach_of_the_null():
    record = sinkscope.Reach((0, 2), (1, 10)).observe(_planted())
    frame = xr.Dataset(
        {name: (("sequence", "layer", "head", "reach_sinks", "reach_window"), np.asarray(record[name])[:, None])
         for name in ("reach", "stream_error")}
        | {"reach_null": (("sequence", "layer", "reach_sinks", "reach_window"), record["reach_null"].numpy()[:, None])},
        coords={"sequence": [0], "layer": [0], "head": np.arange(4), "reach_sinks": [0, 2], "reach_window": [1, 10],
                "length": ("sequence", [64]), "token": np.arange(64)},
    )  # fmt: skip
    table = sinkscope.reach_table(frame, sinks=2, window=10)
    assert table["reach"][3] == pytest.approx(table.attrs["null_reach"], rel=1e-5)
    assert table["kind"].tolist()[:2] == ["streaming", "streaming"] or table["error"][0] > 0.1
    assert table["kind"][1] == "streaming"  # the broadcast comes from a sink that it keeps
    with pytest.raises(SinkscopeError, match="was not measured"):
        sinkscope.reach_table(frame, window=11)


def test_gates_go_through_the_table_of_duoattention(tmp_path):
    model = build("llama")
    record = sinkscope.measure(model, _ids(), [sinkscope.Reach(2, 8)])
    gates = sinkscope.head_gates(record)
    assert gates.dims == ("layer", "kv_head")
    path = sinkscope.save_head_gates(gates, tmp_path / "full_attention_heads.tsv")
    np.testing.assert_allclose(np.loadtxt(path, delimiter="\t"), gates, atol=1e-6)
    assert sinkscope.save_head_gates(gates * 0.5, path) == path  # its own may go
    sinkscope.save_head_gates(gates, path)
    for name in ("thesis.tex", path.name):
        (tmp_path / name).write_text("0.5\t0.5\n")
        with pytest.raises(SinkscopeError, match="was changed, or is not of sinkscope"):
            sinkscope.save_head_gates(gates, tmp_path / name)
        assert (tmp_path / name).read_text() == "0.5\t0.5\n"
        (tmp_path / name).unlink()
    sinkscope.save_head_gates(gates, path)
    threshold = float(np.median(gates))
    one = sinkscope.PerHead.from_table(path, threshold=threshold)
    assert one == sinkscope.PerHead.from_table(gates.values, threshold=threshold)
    assert len(one.parts) - 1 == int((gates > threshold).sum())
    for bad in (gates.isel(layer=0), gates * np.nan, gates.values):
        with pytest.raises(SinkscopeError):
            sinkscope.save_head_gates(bad, tmp_path / "no.tsv")
    assert not (tmp_path / "no.tsv").exists()
    (tmp_path / "empty.tsv").write_text("")
    for table, said in (
        (gates.values * 2, "got numbers from"),
        (gates.values - 1, "got numbers from -"),
        ([[]], "the shape"),
    ):
        with pytest.raises(SinkscopeError, match=said):
            sinkscope.PerHead.from_table(table)
    with pytest.raises(SinkscopeError), warnings.catch_warnings(action="error"):
        sinkscope.PerHead.from_table(tmp_path / "empty.tsv")


def test_a_share_of_the_heads_streams_from_none_to_all():
    model, ids = build("llama"), _ids(80, 1)
    gates = sinkscope.head_gates(sinkscope.measure(model, ids, [sinkscope.Reach(2, 9)]))
    record = sinkscope.head_split(model, ids, gates, (0, 0.5, 1), sinks=2, window=8)
    assert record.share.values.tolist() == [0, 0.5, 1, 0.5]
    assert record.worst_first.values.tolist() == [False, False, False, True]
    ends = sinkscope.perplexity(model, ids, [sinkscope.Dense(), sinkscope.SinkWindow(2, 8)])
    np.testing.assert_allclose(record.nll.isel(policy=[0, 2]), ends.nll, rtol=1e-3, atol=1e-4)
    with pytest.raises(SinkscopeError, match="gates are not finite"):
        sinkscope.head_split(model, ids, gates.where(gates > gates.min()), (0, 0.5))
    for shares in ((), (1.5,), (-0.1,)):
        with pytest.raises(SinkscopeError):
            sinkscope.head_split(model, ids, gates, shares)


def test_depth_has_a_row_for_each_layer_with_bounds_over_texts():
    record = sinkscope.measure(build("gemma3"), _ids(batch=4), [sinkscope.Compression(), sinkscope.SinkMass(1)])
    table = sinkscope.depth_table(record)
    np.testing.assert_allclose(table["matrix_entropy"], record.matrix_entropy.mean("sequence"))
    np.testing.assert_allclose(table["first_norm"], record.state_norm.isel(token=0).mean("sequence"))
    alpha = record.sink_mass.sum("sink").mean("query")  # of the first key, over the queries that see it
    np.testing.assert_allclose(table["sink_rate"], (alpha > 0.3).mean(["sequence", "head"]))
    assert (table["anisotropy_low"] <= table["anisotropy"]).all()


def test_bounds_of_a_share_are_shares():
    texts = [torch.arange(3, 3 + tokens) for tokens in (3, 4, 60, 80)]
    table = sinkscope.depth_table(sinkscope.measure(build("llama"), texts, [sinkscope.Compression()]))
    assert (table[["anisotropy_low", "matrix_entropy_low"]] >= 0).all(axis=None)
    assert (table[["anisotropy_high", "matrix_entropy_high"]] <= 1).all(axis=None)
    wide = xr.DataArray([0.0, 0.0, 1.0], dims="sequence")
    free, held = sinkscope.interval(wide), sinkscope.interval(wide, at_least=0, at_most=1)
    assert float(free["lower"]) < 0 and float(free["upper"]) > 1
    assert (float(held["lower"]), float(held["mean"]), float(held["upper"])) == (0, float(free["mean"]), 1)


def test_gates_are_averaged_and_times_the_sink():
    dims = ("sequence", "layer", "head", "query")
    gate = xr.DataArray(np.array([[[[0.5, 0.2, 0.4]]]]), dims=dims)
    mass = xr.DataArray(np.array([[[[1.0, 0.5, 0.25]]]])[..., None], dims=(*dims, "sink"))
    record = xr.Dataset({"gate": gate, "gate_low": gate * 0, "sink_mass": mass}).assign_coords(
        sequence=[0], layer=[0], head=[0], query=np.arange(3), sink=[0], token=np.arange(3)
    )
    table = sinkscope.gates_table(record)
    assert table["gate"][0] == pytest.approx(1.1 / 3)
    assert table["gated_mass"][0] == pytest.approx((0.2 * 0.5 + 0.4 * 0.25) / 2)
    for first, said in ((2, "keeps 1 apart"), (0, "first=0"), (-1, "first=-1")):
        with pytest.raises(SinkscopeError, match=said):
            sinkscope.gates_table(record, first)


def _spiking():
    shape = ("sequence", "layer", "token")
    largest = np.ones((1, 5, 40))
    largest[0, 1:4, 0] = [500, 2000, 1500]
    largest[0, 2, 7] = 3000
    norms = np.ones((1, 5, 40))
    norms[0, :, 0] = [1, 500, 2000, 1500, 2]
    received = np.full((1, 5, 2, 40), 0.5)
    received[..., 0], received[..., 9] = 30, 20
    return xr.Dataset(
        {
            "activation_max": (shape, largest), "activation_median": (shape, np.full((1, 5, 40), 0.1)),
            "activation_dimension": (shape, np.where(largest > 1, 3, 0)), "state_norm": (shape, norms),
            "received": (("sequence", "layer", "head", "key"), received),
        },
        coords={"sequence": [0], "layer": np.arange(5), "head": [0, 1], "token": np.arange(40), "key": np.arange(40),
                "length": ("sequence", [40])},
    )  # fmt: skip


def test_the_life_of_a_planted_spike():
    table = sinkscope.spike_life(_spiking())
    assert table["position"].tolist() == [0, 7]
    assert table.loc[0, ["rise", "fall", "layers", "step_up", "step_down"]].tolist() == [1, 3, 3, 2, 4]
    assert table["dimensions"].tolist() == ["3", "3"]
    alone = sinkscope.spike_life(_spiking().isel(layer=[2]))  # of one layer no step is known
    assert alone[["rise", "fall", "step_up", "step_down"]].values.tolist() == [[2, 2, -1, -1]] * 2


def test_spikes_and_sinks_overlap_in_the_token_that_is_both():
    table = sinkscope.spike_overlap(_spiking())
    assert table.loc[0, ["spikes", "sinks", "both"]].tolist() == [2, 2, 1]
    assert table["jaccard"][0] == pytest.approx(1 / 3)
    assert table["null"][0] < 0.1
    with pytest.raises(SinkscopeError, match="Received"):
        sinkscope.spike_overlap(_spiking().drop_vars("received"))


def test_softpick_gives_the_share_of_zeros_that_its_weights_have():
    model, ids = build("llama"), _ids(batch=1)
    with (
        torch.no_grad(),
        sinkscope.attached(
            model, normaliser=sinkscope.Softpick(), probes=[sinkscope.ZeroWeights(), sinkscope.Maps()]
        ) as scope,
    ):
        model(ids)
    weights = scope.record.attention_map.values
    seen = np.arange(1, 61)
    np.testing.assert_allclose(scope.record.zero_share, 1 - (weights > 0).sum(-1) / seen, atol=1e-6)
    assert float(scope.record.zero_share.mean()) > 0.1
    plain = sinkscope.measure(model, ids, [sinkscope.ZeroWeights()])
    assert float(plain.zero_share.max()) == pytest.approx(0, abs=1e-6)
