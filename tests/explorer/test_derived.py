"""Maps over several heads are the mean, or the largest, of those of single heads, by definition in numpy."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

import sinkscope
from sinkscope import Maps, SinkscopeError, measure
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.derived import NO_LOGITS, OVER_NAMES, ManyHeads
from sinkscope.explorer.results import SavedMaps, Unit
from sinkscope.explorer.saving import code_of, save_view, view_record
from sinkscope.explorer.tables import table_csv
from tests.explorer.fakes import LENGTH, TEXTS, WAIT, FixedMaps, as_at_first, begun, random_maps
from tests.explorer.references import TOKENS, reader, text
from tests.support.eager import eager_maps
from tests.support.zoo import build

GROUPS = 2  # heads that share keys and values in the tiny llama


@pytest.fixture(scope="module")
def looking():
    """One that has read a text with the tiny llama as it is: two layers of four heads."""
    with begun(Controller(reader(), [f"word{place}" for place in range(TOKENS)])) as made:
        yield made


@pytest.fixture(autouse=True)
def as_before(request):
    if "looking" in request.fixturenames:
        as_at_first(request.getfixturevalue("looking"), 6)


def members(which, unit):
    if which == "all":
        return list(range(8))
    first = unit // 4 * 4 if which == "layer" else unit // GROUPS * GROUPS
    return list(range(first, first + (4 if which == "layer" else GROUPS)))


@pytest.mark.slow
@pytest.mark.parametrize("over", [each for each in OVER_NAMES.values() if each != "head"])
def test_a_map_over_heads_is_their_mean_or_the_largest_of_them(looking, over):
    which, kind = over.split("-")
    eager = eager_maps("llama", {"input_ids": text()[None]})[0].reshape(8, TOKENS, TOKENS)
    expected = getattr(eager[members(which, 6)], kind[:4].rstrip("i"))(0)
    looking.show(over=over, scale="linear")
    whole = slice(0, TOKENS)
    assert looking.maps.members(6) == members(which, 6)
    np.testing.assert_allclose(np.nan_to_num(looking.maps.probabilities(6, whole, whole)), expected, atol=2e-6)
    tile = looking.tile()
    seen = np.tri(TOKENS, dtype=bool)
    steps = (tile.pixels.astype(float) - 1) / 254 * tile.limits.high
    np.testing.assert_allclose(steps[seen], expected[seen], atol=0.51 / 254)
    row, _ = looking.row()
    np.testing.assert_allclose(row, expected[-1], atol=2e-6)
    assert looking.numbers(40, 3) == (pytest.approx(expected[40, 3], abs=2e-6), None)
    table = pd.read_csv(io.StringIO(table_csv(looking, "row")))
    np.testing.assert_allclose(table["probability"], expected[-1], atol=2e-6)
    assert "logit" not in table and set(table["shown"]) == {looking.caption}
    assert looking.caption.startswith(f"{kind} of ") and looking.comparison.said.startswith("Over ")


def test_what_a_map_is_of_is_said_in_words(looking):
    names = {}
    for over in OVER_NAMES.values():
        looking.show(over=over)
        names[over] = looking.maps.name(6)
    assert names == {
        "head": "layer 1, head 2",
        "layer-mean": "mean of the 4 heads of layer 1",
        "layer-maximum": "maximum of the 4 heads of layer 1",
        "group-mean": "mean of heads 2 to 3 of layer 1, which share keys and values",
        "group-maximum": "maximum of heads 2 to 3 of layer 1, which share keys and values",
        "all-mean": "mean of all 8 heads of 2 layers",
        "all-maximum": "maximum of all 8 heads of 2 layers",
    }


def test_a_head_that_does_not_see_a_key_gives_it_nothing_and_a_cell_that_none_sees_is_none():
    one, two = random_maps(8), random_maps(8, seed=1)
    two.weights[5, 2] = one.weights[7, 0] = two.weights[7, 0] = np.nan
    both = FixedMaps(one.weights)
    both.units = [Unit(0, 0), Unit(0, 1)]
    both.probabilities = lambda unit, rows, columns: (one, two)[unit].probabilities(0, rows, columns)
    whole = slice(0, 8)
    mean = ManyHeads(both, "layer-mean").probabilities(1, whole, whole)
    assert mean[5, 2] == pytest.approx(one.weights[5, 2] / 2) and np.isnan(mean[7, 0]) and np.isnan(mean[2, 3])
    most = ManyHeads(both, "all-maximum").probabilities(0, whole, whole)
    assert most[5, 2] == one.weights[5, 2] and most[6, 1] == max(one.weights[6, 1], two.weights[6, 1])


@pytest.mark.slow
@pytest.mark.parametrize("over", ["layer-mean", "group-maximum", "all-mean"])
def test_the_state_brings_a_map_over_heads_back_and_its_code_and_record_hold_it(looking, over, monkeypatch):
    looking.show(over=over)
    again = Controller(reader(), looking.tokens)
    again.restore(looking.state)
    assert again.wait(WAIT) and (again.map_options.over, again.caption) == (over, looking.caption)
    again.close()
    monkeypatch.setattr(sinkscope, "load", lambda: (build("llama"), None))
    fresh: dict = {}
    exec(code_of(looking), fresh)
    whole = slice(0, TOKENS)
    shown = np.nan_to_num(looking.maps.probabilities(6, whole, whole))
    np.testing.assert_allclose(fresh["attention_map"], shown, atol=2e-5)
    record = view_record(looking)
    np.testing.assert_allclose(np.nan_to_num(record["attention_map"].values[0, 0, 0]), shown, atol=1e-6)
    saved = SavedMaps(record)
    assert saved.name(0) == looking.maps.name(6) and saved.sums_to_one == over.endswith("mean")


@pytest.mark.slow
def test_a_saved_view_over_heads_opens_again_under_its_name(looking, tmp_path):
    looking.show(over="layer-mean")
    save_view(looking, tmp_path)
    again = Controller(None, looking.tokens, SavedMaps(sinkscope.open_record(tmp_path / "view.nc")))
    assert again.caption == "mean of the 4 heads of layer 1 · saved record"


@pytest.mark.slow
def test_the_difference_of_two_settings_is_that_of_their_means(looking):
    looking.change(policy="window", window=20)
    assert looking.wait(WAIT)
    looking.show(over="layer-mean", compare="difference", scale="linear")
    whole = slice(0, TOKENS)
    dense = np.mean([looking.dense.reading.maps.probabilities(unit, whole, whole) for unit in range(4, 8)], axis=0)
    assert looking.comparison.numbers(50, 2)[0] == pytest.approx(dense[50, 2], abs=1e-6)
    assert looking.comparison.caption == (
        "mean of the 4 heads of layer 1 · window 20 minus mean of the 4 heads of layer 1 · dense"
    )
    looking.comparison.pin_head()
    looking.comparison.pin_setting()
    looking.choose(5)
    assert looking.comparison.problem.startswith("both are the same")  # another head, of the same layer
    looking.comparison.unpin()
    looking.reset()
    assert looking.wait(WAIT)


@pytest.mark.parametrize(
    ("before", "asked", "reason"),
    [
        ({"over": "layer-mean"}, {"scale": "logit"}, NO_LOGITS),
        ({"scale": "logit"}, {"over": "all-maximum"}, NO_LOGITS),
        ({"over": "layer-maximum"}, {"hiding": "renormalised"}, "no shares of one whole"),
    ],
)
def test_what_cannot_be_shown_over_heads_says_so_and_what_is_shown_stays(looking, before, asked, reason):
    looking.show(**before)
    shown = looking.map_options
    looking.show(**asked)
    assert reason in looking.problem and looking.map_options == shown
    with pytest.raises(SinkscopeError, match="'beauty' is no way"):
        looking.show(over="beauty")


@pytest.mark.slow
def test_a_group_that_is_one_head_or_unknown_says_so():
    alone = Controller(reader("gpt_neox"), [""] * TOKENS)
    alone.begin()
    assert alone.wait(WAIT)
    state = alone.state
    alone.show(over="group-mean")
    assert "has keys and values of its own" in alone.problem and alone.map_options.over == "head"
    with pytest.raises(SinkscopeError, match="the state cannot be shown: each head of layer"):
        alone.restore(f"{state}&over=group-mean")
    later = Controller(reader("gpt_neox"), [""] * TOKENS)
    later.restore(f"{state}&over=group-mean")  # nothing is known of its heads yet
    assert later.wait(WAIT) and later.map_options.over == "head" and "of its own" in later.problem
    for each in (alone, later):
        each.close()
    record = measure(build("llama"), text()[None], [Maps(resolution=None)])
    saved = Controller(None, [""] * TOKENS, SavedMaps(record))
    saved.show(over="group-maximum")
    assert "is not known here" in saved.problem
    saved.show(over="layer-mean")
    assert saved.caption == "mean of the 4 heads of layer 0 · saved record"


def test_a_preview_over_heads_tells_the_share_of_the_mean():
    maps = random_maps(LENGTH)
    controller = Controller(None, TEXTS, saved=maps)
    controller.show(over="layer-mean", hiding="hidden", hidden=1)
    kept = np.nansum(maps.weights[:, 1:], 1)
    assert controller.tile().left == pytest.approx(kept.mean(), abs=1e-6)
