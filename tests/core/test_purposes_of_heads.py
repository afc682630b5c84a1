"""What sinks are for, how far heads reach, gates, and hidden states over depth, against the definitions in float64."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.probes.sink_purpose import strongest
from tests.support.naive_science import heads_of, purpose, reach, tiny
from tests.support.zoo import build

FAMILIES = ("llama", "mistral_sliding", "gpt_oss", "afmoe", "laguna", "qwen3")
CLOSE = {"rtol": 2e-4, "atol": 2e-5}  # float32 beside float64


def _ids(tokens=40, batch=2, seed=5):
    return torch.randint(3, 120, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def _record(model, ids, *probes):
    with torch.no_grad(), sinkscope.capture(model, probes) as scope:
        model(ids)
    return scope.record


@pytest.mark.parametrize("name", FAMILIES)
def test_keys_ratios_and_ranks_are_those_of_the_definitions(name):
    model, ids = tiny(name), _ids()
    record, heads = _record(model, ids, sinkscope.SinkPurpose(mass=0.3)), heads_of(model, ids)
    assert record.sizes["layer"] == len(heads.maps)
    for layer in range(len(heads.maps)):
        known, found = purpose(*(each[layer] for each in heads[:3]), mass=0.3), record.isel(layer=layer)
        assert (found.sink_key == known["key"]).all()
        for variable, key in {"sink_mean": "mean", "sink_norm_ratio": "ratio", "output_stable_rank": "rank"}.items():
            np.testing.assert_allclose(found[variable], known[key], **CLOSE)
        np.testing.assert_allclose(found.sink_share, known["share"], atol=1e-6)


@pytest.mark.slow
def test_the_strongest_key_is_found_wherever_it_stands():
    """Windows give keys behind the first ones, which are looked at before, the most attention."""
    model, ids = build("mistral_sliding"), _ids(tokens=90, batch=3)
    record, heads = _record(model, ids, sinkscope.SinkPurpose()), heads_of(model, ids)
    keys = np.stack([each.mean(2).argmax(-1) for each in heads.maps], 1)
    assert (record.sink_key == keys).all()
    assert (keys >= 16).any()


@pytest.mark.parametrize("name", ("llama", "mistral_sliding", "gpt_oss", "qwen3_next", "falcon"))
def test_what_received_sums_gives_the_strongest_key_too(name):
    model, ids = tiny(name), _ids(tokens=90, batch=3)
    probes = [_Strongest(), sinkscope.Received()]
    alone, beside = _record(model, ids, probes[0]), _record(model, ids, *probes)
    assert (beside.sink_key == beside.received.argmax("key")).all()
    assert (beside.sink_key >= 16).any() or name != "mistral_sliding"
    np.testing.assert_array_equal(alone.sink_key, beside.sink_key)
    np.testing.assert_array_equal(alone.sink_held, beside.sink_held)


class _Strongest(sinkscope.LayerProbe):
    """What `SinkPurpose` finds before it asks for W_O, which falcon does not show."""

    makes: ClassVar = {
        "sink_key": sinkscope.Variable(("sequence", "head")),
        "sink_held": sinkscope.Variable(("sequence", "head", "query")),
    }

    def observe(self, layer):
        return dict(zip(self.makes, strongest(layer), strict=True))


def test_what_received_sums_is_not_for_probes_to_change():
    class Emptying(sinkscope.LayerProbe):
        makes: ClassVar = {"nothing": sinkscope.Variable(("sequence", "head"))}

        def observe(self, layer):
            return {"nothing": layer.received.zero_().sum(-1)}

    with pytest.raises(SinkscopeError, match="Emptying changed the model's own states in place"):
        sinkscope.measure(build("llama"), _ids(), [sinkscope.Received(), Emptying()])


@pytest.mark.parametrize("name", ("afmoe", "qwen3_next"))
def test_gates_are_found_on_any_number_of_threads(name):
    """Two rows of a product are split between threads, and equal to rounding only."""
    model, ids = tiny(name), _ids(tokens=64)
    alone = _record(model, ids, sinkscope.Gates())
    torch.set_num_threads(4)  # set back by the fixture of all tests
    np.testing.assert_allclose(_record(model, ids, sinkscope.Gates()).gate, alone.gate, atol=1e-6)


@pytest.mark.parametrize("name", ("afmoe", "qwen3_next", "hrm_text"))
def test_gates_are_those_that_the_output_was_multiplied_by(name):
    model, ids = tiny(name), _ids()
    record = _record(model, ids, sinkscope.Gates(low=0.3), sinkscope.SinkMass())
    gates = []
    for module in model.modules():  # what a sigmoid made inside attention, of the size of the output
        if "Attention" in type(module).__name__ and hasattr(module, "o_proj"):
            module.o_proj.register_forward_pre_hook(lambda module, args: gates.append(args[0]))
    plain = []
    attend = torch.sigmoid

    def noted(states):
        made = attend(states)
        plain.append(made)
        return made

    torch.sigmoid = noted
    try:
        with torch.no_grad():
            model(ids)
    finally:
        torch.sigmoid = attend
    for layer in range(record.sizes["layer"]):
        mixed = gates[layer]
        size = (*mixed.shape[:2], record.sizes["head"], -1)
        made = [each for each in plain if each.numel() == mixed.numel()][layer].reshape(*size).numpy()
        found = record.isel(layer=layer).transpose("sequence", "query", "head", ...)
        np.testing.assert_allclose(found.gate, made.mean(-1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.gate_low, (made < 0.3).mean(-1), atol=1e-6)


def test_a_gate_that_is_shut_is_found_shut_and_one_that_never_changes_is_a_gate():
    model = tiny("afmoe")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.gate_proj.weight.zero_()
    record = _record(model, _ids(), sinkscope.Gates())
    np.testing.assert_allclose(record.gate, 0.5, rtol=1e-5)
    assert (record.gate_low == 0).all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("sinks", "window"), [(0, 1), (2, 5), (4, 64)])
def test_reach_and_the_error_of_streaming_are_those_of_brute_force(name, sinks, window):
    model, ids = tiny(name), _ids(tokens=70)
    record, heads = _record(model, ids, sinkscope.Reach((0, sinks or 1), (window, 80))), heads_of(model, ids)
    found = record.sel(reach_sinks=sinks, reach_window=window)
    for layer, (maps, values) in enumerate(zip(heads.maps, heads.values, strict=True)):
        mass, error = reach(maps, values, sinks, window)
        np.testing.assert_allclose(found.reach.isel(layer=layer), mass, **CLOSE)
        np.testing.assert_allclose(found.stream_error.isel(layer=layer), error, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(record.stream_error.sel(reach_window=80), 0, atol=1e-5)  # nothing is left out


@pytest.mark.parametrize("name", ("llama", "mistral_sliding", "gpt_oss"))
def test_the_null_of_reach_is_even_attention_to_what_each_layer_sees(name):
    model, ids = tiny(name), _ids(tokens=150)
    record, heads = _record(model, ids, sinkscope.Reach((0, 3), (5, 140))), heads_of(model, ids)
    query, key = np.arange(150)[:, None], np.arange(150)
    for layer, maps in enumerate(heads.maps):
        seen = maps[:, 0] > 0
        for sinks, window in ((0, 5), (3, 5), (3, 140)):
            inside = seen & ((key < sinks) | (query - key < window))
            found = record.reach_null.isel(layer=layer).sel(reach_sinks=sinks, reach_window=window)
            np.testing.assert_allclose(found, (inside.sum(-1) / seen.sum(-1)).mean(-1), rtol=1e-6)


def test_the_error_of_a_group_is_that_of_its_heads_together():
    model, ids = build("llama"), _ids(tokens=50)
    record, heads = _record(model, ids, sinkscope.Reach(2, 6)), heads_of(model, ids)
    for layer, (maps, values) in enumerate(zip(heads.maps, heads.values, strict=True)):
        _, error = reach(maps, values, 2, 6)
        whole = np.linalg.norm(maps @ values, axis=(-2, -1))
        lost, all_of_it = ((each**2).reshape(2, 2, 2).sum(-1) for each in (error * whole, whole))
        found = record.group_error.isel(layer=layer, reach_sinks=0, reach_window=0)
        np.testing.assert_allclose(found, np.sqrt(lost / all_of_it), rtol=1e-3)


@pytest.mark.parametrize("name", ("llama", "mistral_sliding", "gpt_oss", "afmoe"))
@pytest.mark.parametrize("tokens", (30, 90))  # fewer and more than the width
def test_entropy_anisotropy_kurtosis_and_norms_follow_from_the_singular_values(name, tokens):
    model, ids = tiny(name), _ids(tokens=tokens)
    record, heads = _record(model, ids, sinkscope.Compression()), heads_of(model, ids)
    for layer, hidden in enumerate(heads.hidden):
        for sequence, states in enumerate(hidden):
            shares = np.linalg.svd(states, compute_uv=False) ** 2
            shares /= shares.sum()
            found = record.isel(layer=layer, sequence=sequence)
            known = -(shares * np.log(shares)).sum() / np.log(min(states.shape))
            np.testing.assert_allclose(found.matrix_entropy, known, rtol=1e-4)
            np.testing.assert_allclose(found.anisotropy, shares[0], rtol=1e-4)
            centred = states - states.mean()
            np.testing.assert_allclose(found.state_kurtosis, (centred**4).mean() / (centred**2).mean() ** 2, rtol=1e-4)
            np.testing.assert_allclose(found.state_norm, np.linalg.norm(states, axis=-1), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ("qwen3_next", "qwen3_5_text", "jamba", "zamba2", "granitemoehybrid", "lfm2_moe", "minimax", "recurrent_gemma",
     "nemotron_h", "kimi_linear", "olmo_hybrid"),
)  # fmt: skip
def test_states_of_a_hybrid_model_are_those_behind_all_its_layers(name):
    model, ids = tiny(name), _ids(tokens=24, batch=1)
    record = sinkscope.measure(model, ids, [sinkscope.Compression(), sinkscope.SinkMass(1)])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    norms = np.stack([each[0].norm(dim=-1).numpy() for each in states])  # the last one is behind a norm
    layers = model.config.num_hidden_layers
    assert record["layer"].values.tolist() == list(range(layers)) and len(norms) == layers + 1
    np.testing.assert_allclose(record.state_norm[0, :-1], norms[1:-1], rtol=1e-5)
    np.testing.assert_allclose(record.state_rise[0, :-1], np.diff(norms[:-1], axis=0), rtol=1e-4, atol=1e-4)
    without = [number for number in range(layers) if bool(record.sink_mass.sel(layer=number).isnull().all())]
    assert record.attrs["layers_without_attention"] == ", ".join(map(str, without)) != ""


def test_a_layer_that_is_there_twice_has_the_numbers_of_its_runs():
    model, ids = build("llama"), _ids()
    model.model.layers.append(model.model.layers[0])
    model.config.num_hidden_layers = 3
    record = sinkscope.measure(model, ids, [sinkscope.Compression(), sinkscope.SinkMass(1)])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    assert record["layer"].values.tolist() == [0, 1, 2] and "layers_without_attention" not in record.attrs
    for number in (0, 1):
        np.testing.assert_allclose(record.state_norm.sel(layer=number), states[number + 1].norm(dim=-1), rtol=1e-5)


@pytest.mark.parametrize("name", ("reformer", "rwkv"))
def test_states_of_a_model_whose_attention_is_not_seen_are_no_record_of_it(name):
    with pytest.raises(SinkscopeError, match="ran, but no softmax or scaled dot product attention was seen"):
        sinkscope.measure(tiny(name), _ids(), [sinkscope.HiddenExtremes(), sinkscope.SinkMass(1)])


def test_one_direction_has_no_entropy_and_all_directions_alike_have_all():
    line = torch.arange(1.0, 6.0)[:, None] * torch.tensor([[3.0, 4.0]])
    even = torch.eye(6)[None]
    observe = sinkscope.Compression().observe_hidden
    assert float(observe(line[None])["matrix_entropy"]) == pytest.approx(0, abs=1e-12)
    assert float(observe(line[None])["anisotropy"]) == pytest.approx(1)
    assert float(observe(even)["matrix_entropy"]) == pytest.approx(1)
    assert float(observe(even)["anisotropy"]) == pytest.approx(1 / 6)


def test_the_model_is_left_as_it_was_and_its_outputs_are_the_same():
    model, ids = tiny("afmoe"), _ids()
    with torch.no_grad():
        before = model(ids).logits
        with sinkscope.capture(model, [sinkscope.Gates(), sinkscope.SinkPurpose(), sinkscope.Reach()]):
            inside = model(ids).logits
        assert torch.equal(model(ids).logits, before)
    torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-4)
    assert not any((*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules())


@pytest.mark.slow
def test_padded_texts_are_measured_as_they_are_alone():
    model, ids = tiny("afmoe"), _ids()
    probes = [sinkscope.Gates(), sinkscope.SinkPurpose(), sinkscope.Reach(2, 8)]
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    with torch.no_grad(), sinkscope.capture(model, probes) as scope:
        model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    alone = _record(model, ids[1:, 9:], *probes)
    for name in ("sink_key", "sink_norm_ratio", "output_stable_rank", "reach", "stream_error"):
        np.testing.assert_allclose(scope.record[name][1], alone[name][0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scope.record.gate[1, ..., :31], alone.gate[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "probe", "said"),
    [
        ("llama", sinkscope.Gates(), "multiplies no output of its heads"),
        ("gpt_neo", sinkscope.SinkPurpose(), "attention interface only"),
        ("bitnet", sinkscope.SinkPurpose(), "does not hand the outputs of its heads to a linear module"),
    ],
)
def test_what_a_model_has_not_is_said_in_its_name(name, probe, said):
    model = tiny(name)
    with pytest.raises(SinkscopeError, match=said):
        _record(model, _ids(), probe)
    assert not any((*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("probe", (sinkscope.SinkPurpose(), sinkscope.Reach(), sinkscope.Compression()))
def test_a_text_that_goes_on_is_refused(probe):
    model = build("llama")
    with pytest.raises(SinkscopeError, match="in one"), torch.no_grad(), sinkscope.capture(model, [probe]):
        model.generate(_ids(), max_new_tokens=3, do_sample=False)


def test_settings_out_of_range_are_refused():
    for made in (
        lambda: sinkscope.SinkPurpose(mass=1.5),
        lambda: sinkscope.Gates(low=0),
        lambda: sinkscope.Reach(sinks=-1),
        lambda: sinkscope.Reach(windows=(4, 4)),
        lambda: sinkscope.Reach(windows=0),
    ):
        with pytest.raises(SinkscopeError):
            made()
    with pytest.raises(SinkscopeError, match="longer text"):
        sinkscope.measure(build("llama"), _ids(tokens=12), [sinkscope.Reach(sinks=16)])
