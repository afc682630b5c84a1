"""The page without a kernel, as a file: what it holds, what it refuses, how large it is."""

from __future__ import annotations

import base64
import json
import re
import zlib
from functools import cache

import numpy as np
import pytest

import sinkscope
from sinkscope import SinkscopeError
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.page import page_of, page_script, page_settings, save_page
from sinkscope.explorer.page.packing import beside
from sinkscope.seals import unsealed
from tests.explorer.references import TOKENS, reader, text
from tests.support.zoo import build

HOSTILE = "</script><script>globalThis.wasRun = true</script><img src=x onerror='globalThis.wasRun = true'>\u202e"
WORDS = [HOSTILE, *(f"word{place}" for place in range(1, TOKENS))]
ASKED = [{"policy": "window", "window": 16}, sinkscope.SinkWindow(2, 16)]


@cache
def written(folder, megabytes=12.0):
    return save_page(reader(), WORDS, folder / f"page-{megabytes}.html", ASKED, megabytes).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


def told(page):
    return json.loads(re.search(r'<script type="application/json" id="about">(.*?)</script>', page, re.S)[1])


def held(page, name):
    return np.frombuffer(
        zlib.decompress(base64.b64decode(re.search(rf'id="{name}">(.*?)</script>', page, re.S)[1])), np.uint8
    )


def record_of(policy=None):
    """Maps [head of all layers, query, key] by a measurement that knows nothing of the explorer."""
    record = sinkscope.measure(build("llama"), text()[None], [sinkscope.Maps(resolution=None)], policy=policy)
    return record["attention_map"].values[0].astype(np.float64).reshape(-1, TOKENS, TOKENS)


def in_bytes(weights):
    """1 to 255 along log10 from -5 to 0; written anew here."""
    with np.errstate(divide="ignore"):
        places = np.rint(1 + 254 * (np.maximum(np.log10(weights), -5) + 5) / 5)
    return np.nan_to_num(np.clip(places, 1, 255)).astype(int)


@pytest.mark.slow
def test_the_page_holds_the_map_of_every_head_token_by_token_where_there_is_room(folder):
    page = written(folder)
    assert told(page)["side"] == TOKENS and told(page)["fine"] == []
    maps = held(page, "maps-0").reshape(-1, TOKENS * (TOKENS + 1) // 2)
    expected = in_bytes(record_of())[:, *np.tril_indices(TOKENS)]
    assert maps.shape == expected.shape and np.abs(maps - expected).max() <= 1  # where float32 rounds the other way
    assert (maps != expected).mean() < 1e-3


@pytest.mark.slow
def test_rows_that_a_window_leaves_alone_are_told_as_the_same(folder):
    told_apart = held(written(folder), "maps-1").reshape(-1, TOKENS * (TOKENS + 1) // 2)
    queries, keys = np.tril_indices(TOKENS)
    assert (told_apart[:, queries < 16] == 1).all()
    hidden = np.isnan(record_of(sinkscope.Window(16)))[0][queries, keys] | (queries - keys > 16)
    assert (told_apart[:, hidden] == 0).all() and (told_apart[:, ~hidden] > 0).all()


def test_the_distance_of_bytes_is_undone_by_its_inverse():
    values, dense = np.mgrid[:256, :256].astype(np.uint8)
    apart = beside(values, dense)
    restored = np.where(apart == 0, 0, (apart.astype(int) + dense + 253) % 255 + 1)  # as page.js has it
    np.testing.assert_array_equal(restored, values)


def test_losses_and_next_tokens_are_those_of_the_model(folder):
    page = written(folder)
    numbers = held(page, "numbers-0")
    strips = 8 * TOKENS * 4
    losses = np.frombuffer(numbers[strips : strips + 4 * TOKENS].tobytes(), "<f4")
    expected = sinkscope.perplexity(build("llama"), text()[None], policies=[sinkscope.Dense()])["nll"].values.ravel()
    np.testing.assert_allclose(losses[1:], expected[-(TOKENS - 1) :], rtol=1e-4)


@pytest.mark.slow
def test_a_page_without_room_is_pooled_and_keeps_as_many_heads_as_fit(folder):
    whole = len(written(folder).encode()) / 1e6
    page = written(folder, whole - 0.012)
    about = told(page)
    assert len(page.encode()) <= (whole - 0.012) * 1e6
    assert about["side"] == 30 < about["fine_side"] == TOKENS
    assert about["fine"][0] == about["opening"]["unit"]  # the head that it opens on
    pooled = held(page, "maps-0").reshape(8, -1)
    expected = in_bytes(np.fmax.reduce(np.stack([record_of()[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])))
    assert np.abs(pooled - expected[:, *np.tril_indices(30)]).max() <= 1


@pytest.mark.slow
def test_a_page_that_would_exceed_its_size_says_what_to_drop_and_writes_nothing(tmp_path):
    with pytest.raises(SinkscopeError, match=r"20 × 20 cells.* has 0\.1\d* MB, and 0\.05 .* fewer than 2 settings"):
        save_page(reader(), WORDS, tmp_path / "page.html", ASKED, 0.05)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([{"policy": "recompute", "window": 16}], "maps of its own for every query"),
        ([{"polcy": "window"}], "'polcy' is no field of a setting"),
        (["window"], "'window' is no setting of a page; give a policy"),
        ([{"policy": "sinks", "sinks": 16, "window": 4}], "a window of 4 is smaller than the 16 sinks"),
        ([{"policy": "chosen", "evicted": (400,)}], "token 400 cannot be evicted"),
    ],
)
def test_a_setting_that_no_page_can_show_is_refused_before_anything_runs(settings, reason, tmp_path):
    with pytest.raises(SinkscopeError, match=reason):
        save_page(None, WORDS, tmp_path / "page.html", settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_of_somebody_else_is_not_replaced_and_one_of_ours_is(tmp_path):
    file = tmp_path / "page.html"
    assert save_page(reader(), WORDS, file, []) == file == save_page(reader(), WORDS, file, [])
    assert unsealed(file.read_bytes(), ".html")
    file.write_text("<p>mine</p>")
    with pytest.raises(SinkscopeError):
        save_page(reader(), WORDS, file, [])
    assert file.read_text() == "<p>mine</p>"
    with pytest.raises(SinkscopeError, match=r"ends in \.html"):
        save_page(reader(), WORDS, tmp_path / "page.pdf", [])


def test_nothing_in_the_page_asks_the_network_or_reads_text_as_html(folder):
    page = written(folder)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert HOSTILE not in page and page.count("<script") == page.count("</script>")
    assert not re.search(
        r"(src|href)=|url\(|@import|https?://", re.sub(r"<script type=.*?</script>", "", page, flags=re.S)
    )
    assert not re.search(
        r"innerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|https?:|import |export ", page_script()
    )


def test_the_settings_of_a_page_are_dense_and_nine_others_at_least():
    assert len(page_settings(256)) == 9
    assert {"policy": "sinks", "sinks": 4, "window": 64} in page_settings(256)
    assert page_settings(256, [8], [0]) == [{"policy": "window", "window": 8}]


@pytest.mark.slow
def test_a_setting_asked_for_twice_is_there_once(tmp_path):
    asked = [{"policy": "dense"}, sinkscope.Window(16), {"policy": "window", "window": 16, "sinks": 2}]
    other = sinkscope.Window(16, layers=[1])
    page = save_page(reader(), WORDS, tmp_path / "page.html", [*asked, other]).read_text(encoding="utf-8")
    assert [each["name"] for each in told(page)["settings"]] == ["dense", "window 16", other.name]


@pytest.mark.slow
def test_an_open_explorer_gives_its_head_its_query_and_what_it_shows_and_goes_on(tmp_path):
    controller = Controller(reader(), WORDS)
    controller.begin()
    assert controller.wait(60)
    controller.change(policy="window", window=9)
    assert controller.wait(60)
    controller.choose(6)
    controller.choose_query(33)
    page = page_of(controller, tmp_path / "page.html", None, 12.0).read_text(encoding="utf-8")
    assert told(page)["opening"] == {"unit": 6, "query": 33}
    assert told(page)["settings"][-1]["name"] == controller.name == "window 9"
    assert (controller.unit, controller.query, controller.problem) == (6, 33, "")
    controller.close()
    with pytest.raises(SinkscopeError, match="the explorer is closed"):
        page_of(controller, tmp_path / "page.html", None, 12.0)
