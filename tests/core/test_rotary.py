"""Rotary geometry found by probing, against the keys that the models themselves make at other positions."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from sinkscope import SinkscopeError
from sinkscope.models.rotary import changes_with_length, find_rotations, position_limit
from tests.support.zoo import DECODERS, build, with_uneven_attention

ABSOLUTE = ("gpt2", "gpt_bigcode", "gpt_neo", "opt")
UNROTATED = ("falcon_alibi", "mpt", "bloom")
ROTARY = [name for name in DECODERS if name not in (*ABSOLUTE, *UNROTATED)]
SCALINGS = {
    "linear": dict(rope_type="linear", factor=4.0, rope_theta=10000.0),
    "dynamic": dict(rope_type="dynamic", factor=4.0, rope_theta=10000.0, original_max_position_embeddings=512),
    "yarn": dict(rope_type="yarn", factor=4.0, rope_theta=10000.0, original_max_position_embeddings=128),
    "llama3": dict(rope_type="llama3", factor=8.0, rope_theta=10000.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=128),
    "longrope": dict(rope_type="longrope", factor=4.0, rope_theta=10000.0, short_factor=[1.0 + i / 8 for i in range(8)],
                     long_factor=[4.0] * 8, original_max_position_embeddings=512),
}  # fmt: skip


def cached(model, position):
    """What each layer caches of five tokens that stand alone at a position."""
    cache, tokens = DynamicCache(), torch.arange(10, 15)[:, None]
    with torch.no_grad():
        model.base_model(tokens, cache=cache, use_cache=True, position_ids=torch.full_like(tokens, position))
    return [{"keys": layer.keys, "values": layer.values} for layer in cache.layers]


def assert_moves_keys(model):
    here, there = cached(model, 37), cached(model, 201)
    for rotation, old, new in zip(find_rotations(model), here, there, strict=True):
        if rotation is None:
            torch.testing.assert_close(old["keys"], new["keys"])
            continue
        scale = float(new[rotation.slot].abs().max())
        moved = rotation.turned(old[rotation.slot], 201 - 37)
        torch.testing.assert_close(moved, new[rotation.slot], atol=3e-5 * scale, rtol=0)
        assert float((moved - old[rotation.slot]).abs().max()) > 0.1 * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", ROTARY)
def test_a_turned_key_is_the_key_at_another_position(name):
    assert_moves_keys(build(name))


def scaled_model(kind):
    """A tiny model whose frequencies are scaled, of 512 positions."""
    options = dict(DECODERS["llama"][1], rope_parameters=SCALINGS[kind], max_position_embeddings=512)
    family = "llama"
    if kind == "longrope":
        family, options = "phi3", dict(options, sliding_window=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options))
    return with_uneven_attention(model).eval()


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_frequencies_are_found(kind):
    model = scaled_model(kind)
    assert_moves_keys(model)
    assert changes_with_length(model) == (kind in ("dynamic", "longrope"))
    assert position_limit(model) == 512


@pytest.mark.parametrize("name", UNROTATED)
def test_keys_that_do_not_depend_on_position_are_left_alone(name):
    assert set(find_rotations(build(name))) == {None}


def test_layers_without_positions_are_told_apart():
    rotations = find_rotations(build("smollm3"))
    assert [rotation is None for rotation in rotations] == [False, False, False, True]


def test_each_layer_has_its_own_frequencies():
    model = build("gemma3")
    sliding, full = find_rotations(model)[0], find_rotations(model)[-1]
    assert float((sliding.frequencies / full.frequencies)[-1]) > 10


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "cohere2", "deepseek_v3"])
def test_half_precision_finds_the_same_frequencies(name):
    model = build(name)
    exact = find_rotations(model)
    for parameter in model.parameters():  # as from_pretrained does: the table of frequencies stays in float32
        parameter.data = parameter.data.bfloat16()
    for single, half in zip(exact, find_rotations(model), strict=True):
        assert (single is None) == (half is None)
        if single is not None:
            assert (single.slot, single.low, single.high, single.interleaved) == (
                half.slot, half.low, half.high, half.interleaved,
            )  # fmt: skip
            torch.testing.assert_close(single.frequencies, half.frequencies, atol=1e-6, rtol=1e-6)


def test_angles_stay_exact_a_million_positions_away():
    rotation = find_rotations(build("llama"))[0]
    key = torch.randn(1, 2, 3, 16, generator=torch.Generator().manual_seed(0))
    far = rotation.turned(key, 1_000_003)
    pairs = torch.complex(*rotation.pairs(key.double()))
    angle = (1_000_003 * rotation.frequencies).remainder(2 * torch.pi)
    expected = pairs * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(torch.complex(*rotation.pairs(far.double())), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(rotation.turned(far, -1_000_003), key, atol=1e-6, rtol=0)


def test_each_row_of_a_batch_can_move_by_its_own():
    rotation = find_rotations(build("phi"))[0]
    keys = torch.randn(2, 2, 3, 16, generator=torch.Generator().manual_seed(0))
    together = rotation.turned(keys, torch.tensor([[1, 2, 3], [7, 7, 7]]))
    assert torch.equal(together[:1], rotation.turned(keys[:1], torch.tensor([1, 2, 3])))
    assert torch.equal(together[1:], rotation.turned(keys[1:], 7))


@pytest.mark.parametrize("name", ABSOLUTE)
def test_learned_absolute_positions_are_refused(name):
    with pytest.raises(SinkscopeError, match="learned absolute positions"):
        find_rotations(build(name))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(SinkscopeError, match="training mode"):
        find_rotations(build("llama").train())
