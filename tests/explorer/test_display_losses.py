"""The chart of the losses."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sinkscope.explorer.display import draw_losses, loss_figure, running_mean


@given(st.lists(st.floats(0, 20), max_size=60), st.integers(1, 20))
def test_a_running_mean_is_over_each_value_and_those_right_before_it(values, width):
    expected = [np.mean(values[max(0, at - width + 1) : at + 1]) for at in range(len(values))]
    np.testing.assert_allclose(running_mean(np.array(values), width), expected, atol=1e-9)


def test_tokens_that_were_not_scored_are_no_points_and_break_no_mean():
    figure, dense = loss_figure(), np.array([np.nan, 1, 2, 3, 4], dtype=np.float32)
    sample = np.array([np.nan, 2, np.nan, np.nan, 6], dtype=np.float32)
    draw_losses(figure, dense, sample, "recompute 2", 3)
    points, line = figure.data[2], figure.data[3]
    assert list(points.x) == list(line.x) == [1, 4] and list(points.y) == [2, 6] and list(line.y) == [2, 4]
    assert line.name == "recompute 2" and line.showlegend and figure.layout.shapes[0].x0 == 3
    figure.close()


def test_the_model_as_it_is_alone_has_one_curve():
    figure = loss_figure()
    draw_losses(figure, np.array([np.nan, 1.0]), np.array([np.nan, 2.0]), "window 1", 1)
    draw_losses(figure, np.array([np.nan, 1.0]), None, "dense", 1)
    assert [list(each.x) for each in figure.data] == [[1], [1], [], []] and not figure.data[3].showlegend
    figure.close()
