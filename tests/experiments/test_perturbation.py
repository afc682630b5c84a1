"""How far a change spreads, against two runs of the model in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope.errors import SinkscopeError
from tests.support.naive_science import heads_of, tiny
from tests.support.zoo import build


def _ids(tokens=24, batch=3):
    return torch.randint(3, 120, (batch, tokens), generator=torch.Generator().manual_seed(5))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("llama", "mistral_sliding", "gpt_oss", "afmoe"))
def test_distances_are_those_of_the_states_of_two_runs_in_float64(name):
    model, ids = tiny(name), _ids()
    record = sinkscope.perturbation_spread(model, ids, place=7)
    new = torch.from_numpy(record["new_token"].values)
    assert (new != ids[:, 7]).all() and torch.isin(new, ids).all()
    other = ids.clone()
    other[:, 7] = new
    for way, begin in {"kept": 0, "removed": 1}.items():
        states = [np.stack(heads_of(model, each[:, begin:]).hidden) for each in (ids, other)]  # [layer, text, token, d]
        distance = np.linalg.norm(states[0] - states[1], axis=-1).transpose(1, 0, 2)
        relative = distance / np.linalg.norm(states[0], axis=-1).transpose(1, 0, 2)
        found = record.sel(first_token=way).isel(token=slice(begin, None))
        np.testing.assert_allclose(found["distance"], distance, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found["relative_distance"], relative, rtol=1e-3, atol=1e-5)
        assert float(found["distance"].sel(token=slice(None, 6)).max()) < 1e-4  # nothing moves before the change
    assert record["distance"].sel(first_token="removed", token=0).isnull().all()


def test_without_attention_a_change_stays_where_it_was_made():
    model = copy.deepcopy(build("llama"))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    record = sinkscope.perturbation_spread(model, _ids())
    assert record["place"].values.tolist() == [6, 6, 6]
    moved = record["distance"].sel(first_token="kept")
    assert (moved.sel(token=6) > 0).all() and float(moved.drop_sel(token=6).max()) == 0
    table = sinkscope.spread_table(record)
    assert (table["spread"] == 0).all() and (table["own"] > 0).all()


def test_the_table_has_means_over_later_tokens_and_paired_differences():
    texts = [row[:length] for row, length in zip(_ids(batch=4), (24, 20, 16, 24), strict=True)]
    record = sinkscope.perturbation_spread(build("llama"), texts)
    table = sinkscope.spread_table(record).set_index(["first_token", "layer"])
    later = [slice(max(2, len(text) // 4) + 1, len(text)) for text in texts]
    behind = {}
    for way in ("kept", "removed"):
        moved = record["relative_distance"].sel(first_token=way).values
        behind[way] = np.stack([moved[row, :, tokens].mean(-1) for row, tokens in enumerate(later)])
    for way, values in behind.items():
        np.testing.assert_allclose(table.loc[way, "spread"], values.mean(0), rtol=1e-9)
    paired = (behind["removed"] - behind["kept"]).mean(0)
    np.testing.assert_allclose(table.loc["removed", "difference"], paired, rtol=1e-6)
    assert table.loc["kept", "difference"].isna().all()
    assert (table["low"] <= table["spread"]).all() and (table["spread"] <= table["high"]).all()


@pytest.mark.slow
def test_the_same_seed_draws_the_same_token_for_both_and_another_draws_others():
    model, ids = build("llama"), _ids()
    one, two, three = (sinkscope.perturbation_spread(model, ids, first="kept", seed=seed) for seed in (3, 3, 4))
    assert one.equals(two) and (one["new_token"] != three["new_token"]).any()
    np.testing.assert_array_equal(
        one["distance"].sel(first_token="kept"),
        sinkscope.perturbation_spread(model, ids, seed=3)["distance"].sel(first_token="kept"),
    )


@pytest.mark.parametrize(
    ("ids", "given", "said"),
    [
        (_ids(3), {}, "3 tokens"),
        (_ids(), {"place": 1}, "place=1"),
        (_ids(), {"place": 23}, "place=23 leaves no token behind it in a text of 24 tokens; give 22"),
        (_ids(), {"first": ()}, "give one or more of kept, removed"),
        (_ids(), {"first": "gone"}, "gone"),
        (torch.full((1, 9), 5), {}, "one token again and again"),
        (torch.full((1, 9), 5000), {}, "one token"),
        (_ids() + 5000, {}, "vocabulary"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(ids, given, said):
    with pytest.raises(SinkscopeError, match=said) as refused:
        sinkscope.perturbation_spread(build("llama"), ids, **given)
    assert "\n" not in str(refused.value)


def test_another_record_is_refused():
    with pytest.raises(SinkscopeError, match=r"make it with sinkscope\.perturbation_spread"):
        sinkscope.spread_table(sinkscope.measure(build("llama"), _ids()))
