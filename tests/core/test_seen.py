"""The probes Seen and SeenMaps: which keys a query may see, by an indexer's choice, a window or a policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import (
    Maps,
    Received,
    Seen,
    SeenMaps,
    SinkMass,
    SinkscopeError,
    SinkWindow,
    Sparsemax,
    attached,
    capture,
    measure,
)
from sinkscope.hf.caches import growing_cache, with_cache
from sinkscope.hf.tiny import tiny_model
from tests.support.eager import eager_maps
from tests.support.several import build_several, inputs_of
from tests.support.zoo import build

IDS = torch.randint(3, 120, (2, 40), generator=torch.Generator().manual_seed(5))
EVERY = (Seen(), SeenMaps(resolution=None))


def eager_sight(model):
    """Where a model's own eager attention is above 0: its mask, [layer, sequence, head, query, key]."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [maps > 0 for maps in model(IDS, output_attentions=True).attentions]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deepseek_v32", "glm_moe_dsa", "axk2", "hy_v4"])
def test_the_choice_of_an_indexer_is_that_of_the_models_own_mask(kind):
    model = tiny_model(kind)
    record = measure(model, IDS, [*EVERY, SinkMass()])
    own = eager_sight(tiny_model(kind))
    chosen = []
    for layer, expected in zip(record.layer.values, own, strict=True):
        found = record.sel(layer=layer)
        np.testing.assert_array_equal(found.seen_map, expected)
        np.testing.assert_array_equal(found.seen_keys, expected.sum(-1))
        np.testing.assert_array_equal(found.sink_seen, expected[..., :4])
        chosen.append(bool((expected.sum(-1) < torch.arange(1, 41)).any()))
    assert any(chosen)  # some layer leaves keys out
    assert bool((record.sink_mass.where(record.sink_seen == 0, 0) == 0).all())


@pytest.mark.parametrize("family", ["llama", "mistral_sliding", "gemma2", "falcon_rotary", "bloom"])
def test_windows_and_causality_are_seen(family):
    model = build(family)
    record, maps = measure(model, IDS, EVERY), eager_maps(family, {"input_ids": IDS})
    np.testing.assert_array_equal(record.seen_map, maps > 0)
    np.testing.assert_array_equal(record.seen_keys, (maps > 0).sum(-1))


@pytest.mark.slow
def test_a_policy_is_seen_and_a_normaliser_is_not():
    """Window and sinks by their definition; sparsemax gives many keys nothing, which the query may see."""
    model, (query, key) = build("llama"), np.ogrid[:40, :40]
    with torch.no_grad(), attached(model, policy=SinkWindow(2, 8), probes=EVERY) as scope:
        model(IDS)
    expected = (key <= query) & ((key < 2) | (query - key <= 8))
    assert bool((scope.record.seen_map == expected).all()) and int(scope.record.seen_keys.max()) == 11
    with torch.no_grad(), attached(model, normaliser=Sparsemax(), probes=[*EVERY, Maps(resolution=None)]) as scope:
        model(IDS)
    assert bool((scope.record.seen_map == (key <= query)).all())
    assert bool((scope.record.attention_map.where(scope.record.seen_map == 1) == 0).any())


def test_padding_is_left_out_and_a_cache_goes_on():
    model, mask = build("llama"), torch.ones_like(IDS)
    mask[0, :6] = 0
    record = measure(model, {"input_ids": IDS, "attention_mask": mask}, EVERY)
    assert record.length.values.tolist() == [34, 40]
    np.testing.assert_array_equal(record.seen_keys[0, 0, 0, :34], np.arange(1, 35))
    with torch.no_grad(), capture(model, EVERY) as scope:
        cache = growing_cache(model)
        for part in IDS.split((25, 15), 1):
            model(part, **with_cache(model, cache))
    whole = measure(model, IDS, EVERY)
    np.testing.assert_array_equal(scope.record.seen_keys, whole.seen_keys)
    np.testing.assert_array_equal(scope.record.seen_map.fillna(0), whole.seen_map)


def test_pooled_maps_count_the_keys_of_a_cell():
    model = build("mistral_sliding")
    exact = measure(model, IDS, [SeenMaps(resolution=None)]).seen_map.values
    counted = measure(model, IDS, [SeenMaps([1], [0], 8)]).seen_map.sel(layer=1, head=0)
    cells = exact[:, 1, 0].reshape(2, 8, 5, 8, 5)
    np.testing.assert_allclose(counted, cells.sum(4).mean(2), atol=1e-6)
    largest = measure(model, IDS, [SeenMaps(resolution=8, pool="max")]).seen_map.values
    np.testing.assert_array_equal(largest, exact.reshape(*exact.shape[:3], 8, 5, 8, 5).max((4, 6)))


def test_other_streams_and_what_is_given_wrongly():
    record = measure(build_several("bart"), inputs_of("bart"), [*EVERY, Received()], stream="cross")
    assert bool((record.seen_keys == 17).all()) and bool((record.seen_map == 1).all())
    with pytest.raises(SinkscopeError, match=r"Seen\(first=0\) looks at no key"):
        Seen(0)
    with pytest.raises(SinkscopeError, match=r"SeenMaps\(resolution=0\) has no cells"):
        SeenMaps(resolution=0)
