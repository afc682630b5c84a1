"""The share of outputs in the span of sinks' values, against projectors made of eager maps and values in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope.attention.attend_layer import PLAIN
from sinkscope.attention.masks import CausalMask
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.sink_tags import _Tags
from sinkscope.scope.interface import observed_layer
from sinkscope.scope.lazy_mask import Sight
from tests.support.naive_science import heads_of, tiny
from tests.support.zoo import build


def _ids(tokens=40, batch=3):
    return torch.randint(3, 120, (batch, tokens), generator=torch.Generator().manual_seed(5))


def _by_hand(maps: np.ndarray, values: np.ndarray, epsilon: float) -> tuple[float, ...]:
    """Of one head: attention [query, key], values [key, dim]."""
    tokens = len(maps)
    sinks = [key for key in range(tokens) if tokens - key >= 16 and maps[key:, key].mean() > epsilon]
    if not sinks:
        return 0, np.nan, np.nan, np.nan, np.nan
    output = maps @ values

    def share(keys: list[int]) -> float:
        onto = np.linalg.pinv(values[keys]) @ values[keys]
        return float(np.linalg.norm(output @ onto) ** 2 / np.linalg.norm(output) ** 2)

    others = [key for key in range(tokens) if key not in sinks]
    count = min(len(sinks), len(others))
    spread = [others[0]] if count == 1 else [
        others[round((len(others) - 1) * place / (count - 1))] for place in range(count)
    ]  # fmt: skip
    rank = np.linalg.matrix_rank(values[sinks])
    return len(sinks), rank, share(sinks), share(spread), rank / values.shape[-1]


@pytest.mark.parametrize("name", ("llama", "mistral_sliding", "gpt_oss", "afmoe", "qwen3"))
def test_shares_are_those_of_projectors_on_the_values_of_keys_with_much_attention(name):
    model, ids = tiny(name), _ids()
    record, heads = sinkscope.sink_tags(model, ids, epsilon=0.08), heads_of(model, ids)
    names = ("tag_sinks", "tag_rank", "tag_share", "tag_control", "tag_null")
    for layer in range(len(heads.maps)):
        for sequence, head in np.ndindex(heads.maps[layer].shape[:2]):
            known = _by_hand(heads.maps[layer][sequence, head], heads.values[layer][sequence, head], 0.08)
            found = record.isel(sequence=sequence, layer=layer, head=head)
            np.testing.assert_allclose([float(found[each]) for each in names], known, rtol=1e-3, atol=1e-4)
    assert int(record["tag_share"].notnull().sum()) > 3


def _planted(tokens=48, dim=8):
    """Heads of which every query holds on to the first key, the same with a value of 0, and uniform attention."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.zeros(1, 3, tokens, dim), torch.zeros(1, 3, tokens, dim)
    query[:, :2, :, 0], key[:, :2, 0, 0] = 30.0, 30.0
    query[:, 1, :, 0] = 0.5  # which leaves some attention to others
    value = torch.randn(1, 3, tokens, dim, generator=generator)
    value[0, 1, 0] = 0
    _, layer = observed_layer(query, key, value, Sight(CausalMask(0), 0, 0, None), weighing=PLAIN)
    return layer


def test_a_head_of_one_sink_is_all_tag_a_sink_of_no_value_leaves_none_and_uniform_attention_has_no_sink():
    found = {name: each[0].tolist() for name, each in _Tags().observe(_planted()).items()}
    assert found["tag_sinks"] == [1, 1, 0] and found["tag_rank"][:2] == [1, 0]
    assert found["tag_share"][:2] == pytest.approx([1, 0], abs=1e-6)
    assert found["tag_null"][:2] == pytest.approx([1 / 8, 0])
    assert np.isnan([found["tag_share"][2], found["tag_control"][2]]).all()


def test_a_head_that_hands_on_nothing_has_no_share():
    layer = _planted()
    silent = replace(layer, output=torch.zeros_like(layer.output))
    assert _Tags().observe(silent)["tag_share"][0].isnan().all()


def test_a_text_of_one_token_has_no_control_beside_it():
    texts = [_ids()[0], _ids()[0, :1]]
    record = sinkscope.sink_tags(build("llama"), texts)
    assert (record.tag_sinks.isel(sequence=1) == 1).all() and record.tag_control.isel(sequence=1).isnull().all()
    np.testing.assert_allclose(record.tag_share.isel(sequence=1), 1, rtol=1e-5)
    alone = sinkscope.sink_tags(build("llama"), texts[:1]).isel(sequence=0)
    np.testing.assert_allclose(record.tag_share.isel(sequence=0), alone.tag_share, rtol=1e-5)


def test_the_table_has_means_over_the_texts_in_which_a_head_has_a_sink():
    record = sinkscope.sink_tags(build("llama"), _ids(batch=5), epsilon=0.1)
    table = sinkscope.tags_table(record)
    for row in table.itertuples():
        own = record.sel(layer=row.layer, head=row.head)
        has = own["tag_share"].notnull().values
        assert row.texts == pytest.approx(has.mean())
        share, control = (own[name].values[has].astype(float) for name in ("tag_share", "tag_control"))
        assert row.share == pytest.approx(share.mean()) and row.excess == pytest.approx((share - control).mean())
        assert row.rank == pytest.approx(own["tag_rank"].values[has].mean())
        if has.sum() >= 3:
            assert row.low <= row.share <= row.high and row.excess_low <= row.excess <= row.excess_high
    assert len(table) == int(record["tag_share"].notnull().any("sequence").sum())


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [("bloom", {}, "needs the values and outputs"), ("llama", {"epsilon": 1.5}, "epsilon=1.5")],
)
def test_what_cannot_be_told_is_said_and_leaves_no_hook(model, given, said):
    made = build(model)
    with pytest.raises(SinkscopeError, match=said):
        sinkscope.sink_tags(made, _ids(), **given)
    assert not any((*module._forward_hooks, *module._forward_pre_hooks) for module in made.modules())


def test_another_record_is_refused():
    with pytest.raises(SinkscopeError, match=r"make it with sinkscope\.sink_tags"):
        sinkscope.tags_table(sinkscope.measure(build("llama"), _ids()))
