"""The Atlas without a browser."""

from __future__ import annotations

import math

import numpy as np

from sinkscope.explorer.canvases import Atlas


def test_scores_that_json_cannot_carry_become_none():
    assert Atlas(scores=[0.5, math.nan, -math.inf]).scores == [0.5, None, None]


def test_orders_and_scores_may_come_from_numpy():
    scores = np.array([0.5, 2.0], np.float32)
    atlas = Atlas(scores=list(scores), order=list(np.argsort(-scores)))
    assert atlas.scores == [0.5, 2.0] and all(type(score) is float for score in atlas.scores)
    assert atlas.order == [1, 0] and all(type(unit) is int for unit in atlas.order)
