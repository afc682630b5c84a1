"""The HeadMap without a browser."""

from __future__ import annotations

import math

import pytest

from sinkscope.explorer.canvases import HeadMap


@pytest.fixture
def answered(monkeypatch):
    """What a HeadMap sends for an answer."""

    def answered(probability, logit):
        sent = []
        head_map = HeadMap()
        monkeypatch.setattr(head_map, "send", sent.append)
        head_map.answer({"kind": "hover", "query": 7, "key": 3, "request": 12}, probability, logit)
        return sent

    return answered


def test_an_answer_names_its_cell_and_the_frame_it_was_asked_of(answered):
    expected = {"kind": "hover", "query": 7, "key": 3, "request": 12, "probability": 0.25, "logit": -1.5}
    assert answered(0.25, -1.5) == [expected]


def test_the_answer_for_a_key_that_is_not_seen_has_no_numbers(answered):
    assert answered(None, None) == [{"kind": "hover", "query": 7, "key": 3, "request": 12, "hidden": True}]


def test_numbers_that_json_cannot_carry_are_answered_as_none(answered):
    (sent,) = answered(0.0, -math.inf)
    assert sent["probability"] == 0.0 and sent["logit"] is None


def test_a_frame_of_another_length_empties_the_view_and_one_of_the_same_length_keeps_it():
    head_map = HeadMap(frame={"length": 64})
    head_map.view = [0, 8, 0, 8]
    head_map.frame = {"length": 64, "request": 2}
    assert head_map.view == [0, 8, 0, 8]
    head_map.frame = {"length": 32, "request": 3}
    assert head_map.view == []
