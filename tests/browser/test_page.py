"""The page without a kernel, opened from the disk with the network off."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

import sinkscope
from sinkscope.explorer.page import save_page
from tests.explorer.references import TOKENS, reader, text
from tests.explorer.test_page import ASKED, HOSTILE, WORDS, in_bytes, record_of
from tests.support.zoo import build

WINDOW = sinkscope.Window(16)


def opened(browser, file, **options):
    """The page of a file, and what it asked for and complained of."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_offline(True)
    page, heard = context.new_page(), []
    page.on("request", lambda request: heard.append(request.url))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("console", lambda message: heard.append(message.text))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    return page, heard


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = reader()
    model.original.config._name_or_path = HOSTILE
    return save_page(model, WORDS, tmp_path_factory.mktemp("page") / "page.html", ASKED)


@pytest.fixture(scope="module")
def shown(browser, file):
    page, heard = opened(browser, file)
    yield page
    assert heard == [file.as_uri()]  # nothing but the page itself, and nothing in the console
    assert page.evaluate("() => globalThis.wasRun === undefined") and page.locator("img").count() == 0
    page.context.close()


@pytest.fixture
def page(shown):
    """Head 5 under the first setting alone, query 50."""
    shown.evaluate("() => document.activeElement?.blur()")
    shown.mouse.move(2, 2)
    shown.locator("#setting").select_option("0")
    shown.locator("#partner").select_option("-1")
    shown.locator("#over").select_option("head")
    choose_head(shown, 5)
    shown.locator("#text-0 .sinkscope-token").nth(50).click()
    settled(shown, "#text-0", "query 50")
    return shown


def choose_head(page, unit):
    page.locator("#atlas canvas").focus()
    page.keyboard.press("Home")
    for _ in range(unit):
        page.keyboard.press("ArrowRight")
    settled(page, "#map-0", f"layer {unit // 4}, head {unit % 4}")


def settled(page, place, caption):
    page.wait_for_selector(f"{place} canvas[data-caption*='{caption}']")


def drawn(page, place, name):
    return np.array(page.locator(f"{place} canvas").evaluate(f"c => Array.from(c.sinkscope.{name})"))


def test_the_map_in_the_page_is_the_records_in_its_256_steps(page):
    for setting, policy in ((0, None), (1, WINDOW), (2, sinkscope.SinkWindow(2, 16))):
        page.locator("#setting").select_option(str(setting))
        settled(page, "#map-0", ("dense", "window 16", "sinks 2+16")[setting])
        pixels = drawn(page, "#map-0", "pixels").reshape(TOKENS, TOKENS)
        weights = np.where(np.tri(TOKENS, dtype=bool), record_of(policy)[5], np.nan)
        seen = np.isfinite(weights) & (pixels > 0)
        assert np.abs(pixels - in_bytes(weights))[seen].max() <= 1
        assert (pixels != in_bytes(weights))[seen].mean() < 2e-3
        assert np.nansum(np.where(pixels == 0, weights, 0)) == 0  # what is not shown was given nothing
        np.testing.assert_array_equal(drawn(page, "#map-0", "sinks").reshape(TOKENS, 4), pixels[:, :4])


def test_a_row_and_a_cell_say_the_records_number_within_the_step_that_they_name(page):
    row, weights = drawn(page, "#text-0", "values").astype(float), record_of()[5][50]
    step = 10 ** (2.5 / 254)  # half of one
    seen = weights[:51] > 1e-5
    assert (np.abs(np.log(row[:51] / weights[:51]))[seen] <= np.log(step) * 1.001).all()
    assert all(np.isnan(row[51:]))
    label = page.locator("#text-0 .sinkscope-token").nth(3).get_attribute("title")
    assert f"probability {float(f'{row[3]:.3g}'):g} ± 2.29%" in label


@pytest.mark.parametrize(
    ("over", "heads"), [("layer-mean", range(4, 8)), ("group-maximum", (4, 5)), ("all-mean", range(8))]
)
def test_a_map_over_heads_is_theirs_within_the_step_that_it_names(page, over, heads):
    weights, kind = record_of()[list(heads)], over.split("-")[1]
    expected = weights.mean(0) if kind == "mean" else weights.max(0)
    page.locator("#over").select_option(over)
    settled(page, "#map-0", f"{kind} of ")
    assert page.locator("#map-0 .sinkscope-said").inner_text().startswith("Over ")
    row, step, least = drawn(page, "#text-0", "values").astype(float), 10 ** (2.5 / 254), 1e-5
    for value, exact in zip(row[:51], expected[50, :51], strict=True):
        assert exact / step - 1e-7 <= value <= exact * step + (least if kind == "mean" else 0) + 1e-7 or exact < least
    pixels = drawn(page, "#map-0", "pixels").reshape(TOKENS, TOKENS)
    seen = np.tri(TOKENS, dtype=bool) & (expected > 1e-3)
    assert np.abs(pixels - in_bytes(np.where(seen, expected, np.nan)))[seen].max() <= 2
    np.testing.assert_array_equal(drawn(page, "#map-0", "sinks").reshape(TOKENS, 4), pixels[:, :4])


def test_the_losses_in_the_page_are_those_of_the_model(page):
    page.locator("#setting").select_option("1")
    settled(page, "#losses", "window 16")
    for place, policy in enumerate((sinkscope.Dense(), WINDOW)):
        losses = np.array(page.locator("#losses canvas").evaluate(f"c => Array.from(c.sinkscope.values[{place}])"))
        expected = sinkscope.perplexity(build("llama"), text()[None], policies=[policy])["nll"].values.ravel()
        np.testing.assert_allclose(losses[1:].astype(float), expected[-(TOKENS - 1) :], rtol=1e-3)


def test_a_second_setting_stands_beside_the_first_with_head_query_and_zoom_in_common(page):
    page.keyboard.press("s")
    settled(page, "#map-0", "window 16")
    page.keyboard.press("b")
    settled(page, "#map-1", "layer 1, head 1 · dense")
    page.locator("#map-0 canvas").focus()
    page.keyboard.press("+")
    half = "(tokens) => document.querySelector('#map-1 canvas').sinkscope.view[1] - tokens / 2 === 15"
    page.wait_for_function(half, arg=TOKENS)
    views = [page.locator(f"#map-{side} canvas").evaluate("c => c.sinkscope.view") for side in (0, 1)]
    assert views[0] == views[1] == [15, 45, 15, 45]
    page.keyboard.press("0")
    page.locator("#text-1 .sinkscope-token").nth(9).click()
    settled(page, "#text-0", "query 9")
    assert page.locator("#next th").all_inner_texts() == ["token", "dense", "window 16"]
    page.keyboard.press("b")
    page.locator("#map-1").wait_for(state="hidden")


def test_heads_and_tokens_are_gone_to_by_number_and_text(page):
    page.get_by_label("go to head").fill("0.2")
    page.keyboard.press("Enter")
    settled(page, "#map-0", "layer 0, head 2")
    page.get_by_label("find token").fill("17")
    page.keyboard.press("Enter")
    settled(page, "#text-0", "query 17")
    page.locator("#text-0 .sinkscope-token").nth(9).hover()
    page.mouse.move(2, 2)
    page.get_by_label("find token").fill("nowhere in this text")
    page.keyboard.press("Enter")
    page.locator("#finder [role=status]", has_text="not found").wait_for()


def test_lines_between_tokens_are_the_maps_and_fold_away(page):
    page.locator("#fold summary").click()
    settled(page, "#lines", "layer 1 · dense")
    values = np.array(page.locator("#lines canvas").evaluate("c => Array.from(c.sinkscope.values[0])"), dtype=float)
    weights, step = record_of()[5], 10 ** (2.5 / 254)
    values = values.reshape(TOKENS, TOKENS)
    seen = np.tri(TOKENS, dtype=bool) & (weights > 1e-5)
    assert (np.abs(np.log(values[seen] / weights[seen])) <= np.log(step) * 1.001).all()
    page.locator("#lines label", has_text="head 3").locator("input").check()
    page.wait_for_function("() => document.querySelector('#lines canvas').sinkscope.heads.length === 2")
    page.locator("#fold summary").click()
    assert not page.locator("#lines canvas").is_visible()


def test_a_pooled_map_says_so_and_its_cells_are_the_largest_of_the_records(browser, file, tmp_path):
    small = save_page(reader(), WORDS, tmp_path / "small.html", ASKED, file.stat().st_size / 1e6 - 0.012)
    page, heard = opened(browser, small)
    choose_head(page, 5)
    settled(page, "#map-0", "largest of 2 × 2 tokens")
    pixels = drawn(page, "#map-0", "pixels").reshape(TOKENS, 30)
    weights = record_of()[5]
    largest = in_bytes(np.fmax.reduce([weights[i::2, j::2] for i in (0, 1) for j in (0, 1)]))
    expected = np.where(np.tri(30, dtype=bool), largest, 0).repeat(2, 0)
    assert np.abs(pixels - expected).max() <= 1 and (pixels != expected).mean() < 2e-3
    strip = drawn(page, "#map-0", "sinks").reshape(TOKENS, 4)
    assert np.abs(strip - np.where(np.tri(TOKENS, 4, dtype=bool), in_bytes(weights[:, :4]), 0)).max() <= 1
    place = page.locator("#map-0 canvas").evaluate(
        "c => { const {x, y, wide, high} = c.sinkscope.area; return {x: x + wide * 21 / 60, y: y + high * 41 / 60}; }"
    )
    page.locator("#map-0 canvas").hover(position=place)
    value = 10 ** (-5 + (pixels[40, 10] - 1) * 5 / 254)
    said = f"largest of 2 × 2 tokens, probability {float(f'{value:.3g}'):g} ± 2.29%"
    page.locator("#map-0 .sinkscope-tip", has_text=said).wait_for()
    assert heard == [small.as_uri()]
    page.context.close()


def test_hostile_tokens_and_names_are_text(page):
    assert page.title().startswith("Attention of ") and "onerror" in page.locator("h1").inner_text()
    assert page.locator("#text-0 .sinkscope-token").first.inner_text().startswith("</script><script>")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_themes(browser, file, scheme):
    page, heard = opened(browser, file, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.keyboard.press("b")
    settled(page, "#map-1", "sinks 2+16")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth") and heard == [file.as_uri()]
    page.context.close()


def read(page, place, focus):
    """The table that C copies from a canvas."""
    page.locator(focus).first.focus()
    page.keyboard.press("c")
    page.locator(f"{place} .sinkscope-copied", has_text="copied as CSV").wait_for()
    return pd.read_csv(io.StringIO(page.evaluate("() => navigator.clipboard.readText()")), keep_default_na=False)


def test_c_copies_heads_row_and_map_as_the_record_has_them(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    weights, step = record_of()[5], 10 ** (2.5 / 254)
    heads = read(page, "#atlas", "#atlas canvas")
    assert list(heads.columns[:2]) == ["layer", "head"] and len(heads) == 8 and set(heads["setting"]) == {"dense"}
    np.testing.assert_allclose(heads.iloc[5, 2], weights[:, :4].sum(-1).mean(), rtol=0.2)
    row = read(page, "#text-0", "#text-0 .sinkscope-token[tabindex='0']")
    assert set(row["query"]) == {50} and row["key"].tolist() == [*range(51)] and len(row["token"][0]) > 5
    seen = weights[50, :51] > 1e-5
    assert (np.abs(np.log(row["probability"] / weights[50, :51]))[seen] <= np.log(step) * 1.001).all()
    cells = read(page, "#map-0", "#map-0 canvas")
    assert len(cells) == TOKENS * (TOKENS + 1) // 2
    exact = weights[cells["query"], cells["key"]]
    assert (np.abs(np.log(cells["probability"] / exact))[exact > 1e-5] <= np.log(step) * 1.001).all()
    page.locator("#map-0 canvas").focus()
    page.keyboard.press("+")
    page.wait_for_function("() => document.querySelector('#map-0 canvas').sinkscope.view[0] === 15")
    part = read(page, "#map-0", "#map-0 canvas")
    assert part["query"].min() >= 15 and part["key"].min() >= 15 and part["key"].max() < 45
    page.keyboard.press("0")


def test_the_keys_that_the_page_names_do_what_it_says(page):
    assert "s and S, the next and the previous setting; b, another one beside it" in page.locator("footer").inner_text()
    page.keyboard.press("s")
    settled(page, "#map-0", "window 16")
    page.keyboard.press("S")
    settled(page, "#map-0", "dense")
    page.keyboard.press("S")  # round and round
    settled(page, "#map-0", "sinks 2+16")
    page.keyboard.press("b")
    settled(page, "#map-1", "dense")
    page.keyboard.press("b")
    page.locator("#map-1").wait_for(state="hidden")
    assert "e evicts" not in page.locator("#text-0 .sinkscope-tokens").get_attribute("aria-label")
