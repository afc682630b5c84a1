"""The chart of the losses: the numbers it was given, its running means, and the query chosen in it."""

from __future__ import annotations

import numpy as np

from tests.browser.canvases.page import canvas, place_of_token, settle, tip, wait_for_text, written


def numbers(rows):
    return np.array([[np.nan if value is None else value for value in row] for row in rows])


def test_the_chart_holds_the_losses_and_means_over_each_token_and_those_scored_right_before_it(notebook):
    drawn = notebook.drawn(canvas(notebook, "losses"))
    given = np.frombuffer(bytes(notebook.python("list(losses.values)")), "<f4").reshape(2, 64)
    np.testing.assert_array_equal(numbers(drawn.values).astype("<f4"), given)
    for curve, mean in zip(given.astype(float), numbers(drawn.means), strict=True):
        scored = np.flatnonzero(np.isfinite(curve))
        np.testing.assert_array_equal(scored, np.flatnonzero(np.isfinite(mean)))
        for at, token in enumerate(scored):
            np.testing.assert_allclose(mean[token], curve[scored[max(0, at - 15) : at + 1]].mean(), rtol=1e-6)


def test_curves_are_named_in_the_legend_each_in_a_colour_and_a_dash_of_its_own(notebook):
    notebook.execute("send_losses(4)")
    settle(notebook)
    samples = notebook.page.locator(".sinkscope-losses .sinkscope-sample")
    looks = [each.evaluate("s => s.style.borderTopColor") for each in samples.all()]
    assert len(set(looks)) == 4
    assert notebook.page.locator(".sinkscope-losses .sinkscope-curves").inner_text().split() == [
        "dense", "window", "12", "third", "fourth",
    ]  # fmt: skip
    assert {"loss (nats)", "token", "0", "20"} <= set(written(notebook, "losses"))


def test_hovering_names_the_token_and_the_loss_of_each_curve(notebook):
    canvas(notebook, "losses").hover(position=place_of_token(notebook, 12))
    wait_for_text(tip(notebook, "losses"), "token 12 ")
    first = np.frombuffer(bytes(notebook.python("list(losses.values)")), "<f4").reshape(2, 64)[0, 12]
    assert tip(notebook, "losses").locator("div").all_inner_texts()[1:] == [
        f"dense: {float(f'{first:.3g}'):g}",
        "window 12: –",  # it was not scored
    ]


def test_a_click_and_the_arrow_keys_choose_the_query(notebook):
    canvas(notebook, "losses").click(position=place_of_token(notebook, 20))
    notebook.wait_for("losses.query == token_text.query == head_map.query == 20")
    notebook.page.keyboard.press("ArrowRight")
    notebook.wait_for("token_text.query == 21")


def test_losses_without_a_scored_token_are_drawn_as_an_empty_chart(notebook):
    notebook.execute(
        "with losses.hold_sync():\n"
        "    losses.values = np.full((1, LENGTH), np.nan, '<f4').tobytes()\n"
        "    losses.frame = {**losses.frame, 'names': ['dense'], 'request': next(requests)}"
    )
    settle(notebook)
    assert "loss (nats)" in written(notebook, "losses")
