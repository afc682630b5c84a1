"""Tables to take away: the numbers of the maps, with nothing in them that a spreadsheet would run."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from sinkscope import SinkscopeError
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.tables import TABLES, save_table, table_csv, table_of
from tests.explorer.fakes import LENGTH, TEXTS, FakeTextModel, ask, random_maps


def read(controller, what):
    return pd.read_csv(io.StringIO(table_csv(controller, what)))


def test_the_row_holds_what_the_chosen_query_gives_each_key_it_sees(controller):
    controller.choose_query(9)
    table, weights = read(controller, "row"), controller.maps.weights
    assert table["query"].tolist() == [9] * 10 and table["key"].tolist() == list(range(10))
    np.testing.assert_allclose(table["probability"], weights[9, :10], rtol=1e-6)
    np.testing.assert_allclose(table["logit"], np.log(weights[9, :10]) + 7, rtol=1e-5)
    assert table["token"].tolist() == [text.replace(" ", "␣") for text in TEXTS[:10]] and set(table["shown"]) == {
        "layer 0, head 0 · dense"
    }


def test_the_map_is_the_part_that_is_shown_and_has_the_partner_beside_it(controller):
    ask(controller, policy="window", window=6)
    controller.show(region=(4, 8, 2, 6), compare="difference")
    table = read(controller, "map").set_index(["query", "key"])
    assert set(table.index) == {(query, key) for query in range(4, 8) for key in range(2, 6) if key <= query}
    now, dense = controller.maps.weights, controller.dense.reading.maps.weights
    for (query, key), row in table.iterrows():
        assert row["probability"] == pytest.approx(now[query, key], rel=1e-6)
        assert row["partner probability"] == pytest.approx(dense[query, key], rel=1e-6)
    assert set(table["partner"]) == {"layer 0, head 0 · dense"}


def test_the_heads_have_all_their_scores(controller):
    table = read(controller, "heads")
    assert table.to_dict("list") == {"layer": [0], "head": [0], "mass": [0.5], "setting": ["dense"]}


@pytest.mark.parametrize("token", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "＝1"])
def test_a_token_that_a_spreadsheet_would_run_is_text(token):
    saved = Controller(None, [token] * LENGTH, saved=random_maps(LENGTH))
    assert set(read(saved, "row")["token"].str[0]) <= {"'", "\\"}  # a tab is written out


@pytest.mark.parametrize("what", ["row", "map"])
def test_half_a_character_is_written_out(what, tmp_path):
    saved = Controller(None, ["\udc80", *TEXTS[1:]], saved=random_maps(LENGTH))
    table = pd.read_csv(save_table(saved, tmp_path / "table.csv", what))
    assert table["token"][table["key"] == 0].unique().tolist() == ["\\udc80"]
    assert table["token"][table["key"] == 1].unique().tolist() == ["token␣1"]


def test_where_nothing_is_shown_there_is_no_table(controller, tmp_path):
    empty = Controller(FakeTextModel(), TEXTS)
    for what in TABLES.values():
        with pytest.raises(SinkscopeError, match="nothing is shown yet"):
            save_table(empty, tmp_path / "table.csv", what)
    with pytest.raises(SinkscopeError, match="is no table"):
        table_of(controller, "beauty")
    controller.now.overview = None
    with pytest.raises(SinkscopeError, match="still being measured"):
        table_of(controller, "heads")
    part = Controller(None, TEXTS, saved=random_maps(4, first=8))
    with pytest.raises(SinkscopeError, match="the map is of tokens 8 to 11"):
        table_of(part, "row")
    controller.close()
    with pytest.raises(SinkscopeError, match="the explorer is closed"):
        save_table(controller, tmp_path / "table.csv", "row")
    assert not list(tmp_path.iterdir())


def test_a_table_is_saved_again_and_over_no_other_file(controller, tmp_path):
    for _ in range(2):
        path = save_table(controller, tmp_path / "new" / "row.csv", "row")
    assert path.read_text() == table_csv(controller, "row")
    path.write_text("mine")
    with pytest.raises(SinkscopeError, match="what is there already is another"):
        save_table(controller, path, "row")
    assert path.read_text() == "mine"
