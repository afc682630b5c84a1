"""One call for all interventions: the baseline, the controls, the model afterwards, and what is refused."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import (
    EvictKeys,
    Repeat,
    ReplaceTokens,
    SetMassive,
    Shift,
    SinkscopeError,
    attached,
    capture,
    intervene,
    intervention_table,
    run_interventions,
)
from sinkscope.experiments import interventions, plain_texts
from sinkscope.experiments.intervention import Intervention, Trial
from tests.experiments import brute
from tests.experiments.brute import START
from tests.support.model_state import state_of
from tests.support.zoo import build

EVERY = [
    EvictKeys("sinks"), EvictKeys("recent"), EvictKeys("delimiters", 2), EvictKeys("sinks", bias=2.0),
    ReplaceTokens("line breaks"), ReplaceTokens("random"), Shift(10), Repeat(),
    SetMassive(magnitude=5.0, ratio=5.0), SetMassive(magnitude=5.0, ratio=5.0, mode="mean"),
]  # fmt: skip


def run(model, chosen=None, texts=None, start=START, **options):
    texts = brute.texts() if texts is None else texts
    options = {"tokenizer": brute.Tokenizer(), "draws": 2, "progress": False} | options
    return run_interventions(model, texts, chosen, start=start, **options)


@pytest.mark.slow
def test_the_baseline_is_the_model_as_it_is_and_comes_first():
    for name in ("llama", "bloom"):
        model = build(name)
        record = run(model, [Repeat()])
        assert record.policy.values[0] == "nothing" and record.control.values[0] == ""
        for number, text in enumerate(brute.texts()):
            expected = brute.losses(brute.plain(model, text), text)[START:]
            found = record.nll.sel(policy="nothing").isel(sequence=number)[START + 1 : len(text)]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_texts_of_one_length_run_together_and_give_what_each_gives_alone(monkeypatch):
    model, seen = build("llama"), []
    handle = model.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    texts = [text[: START + 12] for text in (*brute.texts(), brute.texts()[0].flip(0))]
    chosen = [
        EvictKeys("sinks"),
        EvictKeys("recent"),
        Shift(10),
        ReplaceTokens("line breaks"),
        EvictKeys("sinks", bias=2.0),
    ]
    together = run(model, chosen, texts)
    assert max(seen) == len(texts)
    for module in (interventions, plain_texts):
        monkeypatch.setattr(module, "TOGETHER", START)
    seen.clear()
    alone = run(model, chosen, texts)
    handle.remove()
    assert max(seen) == 1
    for name in ("nll", "draw_nll", "sink_mass", "output_norm", "removed_mass"):
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_without_names_the_usual_ones_run_each_with_its_control():
    record = run(build("llama"))
    assert dict(zip(record.policy.values.tolist(), record.control.values.tolist(), strict=True)) == {
        "nothing": "",
        "evict sinks": "evict random",
        "evict attended": "",
        "evict recent": "evict near-recent",
        "evict delimiters": "evict random",
        "first tokens to line breaks": "other tokens to line breaks",
        "first tokens to random ones": "other tokens to random ones",
        "start 16 later": "cut 16 behind the sinks",
        "repeat one token": "shuffle all tokens",
        "evict random": "",
        "evict near-recent": "",
        "other tokens to line breaks": "",
        "other tokens to random ones": "",
        "cut 16 behind the sinks": "",
        "shuffle all tokens": "",
    }
    assert record.same_tokens.sel(policy=["repeat one token", "shuffle all tokens"]).values.tolist() == [0, 0]
    assert int(record.same_tokens.sum()) == 13


@pytest.mark.slow
def test_of_the_usual_ones_those_that_cannot_be_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="`evict .*is left out: BloomForCausalLM") as warned:
        record = run(build("bloom"), tokenizer=None)
    assert len(warned) == 3 and record.sizes["policy"] == 7
    with pytest.raises(SinkscopeError, match="no key can be taken"):  # asked for, it is refused
        run(build("bloom"), [Shift(10), EvictKeys("sinks")])


@pytest.mark.slow
def test_an_intervention_beside_its_own_control_runs_once_and_reads_as_such():
    table = intervene(build("llama"), brute.texts(), [EvictKeys("sinks"), EvictKeys("random")], start=START,
                      progress=False)  # fmt: skip
    assert list(zip(table.intervention, table.role, strict=True)) == [
        ("nothing", "baseline"),
        ("evict sinks", "effect"),
        ("evict random", "control"),
    ]


@pytest.mark.slow
def test_intervene_is_the_table_of_the_record_with_what_was_given():
    options = {"start": START, "sinks": 2, "first": 2, "seed": 3, "progress": False}
    table = intervene(build("llama"), brute.texts(), [Shift(5)], resamples=50, text="a text", **options)
    record = run_interventions(build("llama"), brute.texts(), [Shift(5)], **options)
    expected = intervention_table(record, resamples=50, seed=3)
    assert table.equals(expected) and table.attrs["text"] == "a text"
    given = {name: table.attrs[name] for name in ("start", "sinks", "first", "seed", "resamples", "kind", "sequences")}
    assert given == {
        "start": START, "sinks": 2, "first": 2, "seed": 3, "resamples": 50, "kind": "interventions", "sequences": 2,
    }  # fmt: skip


@pytest.mark.slow
def test_a_record_is_written_and_read_again(tmp_path):
    record = run(build("llama"), [EvictKeys("sinks", layers=[1])])
    again = sinkscope.open_record(sinkscope.save_record(record, tmp_path / "interventions.nc"))
    assert intervention_table(again, resamples=20).equals(intervention_table(record, resamples=20))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_the_model_is_the_same_to_the_bit_afterwards_and_free_of_hooks(name):
    model = build(name)
    weights, state = {path: each.clone() for path, each in model.state_dict().items()}, state_of(model)
    before = brute.plain(model, brute.texts()[0])
    run(model, EVERY)
    assert state_of(model) == state
    assert all(torch.equal(each, weights[path]) for path, each in model.state_dict().items())
    assert torch.equal(brute.plain(model, brute.texts()[0]), before)


class Breaks(Intervention):
    """Raises inside a layer, with a hook and the scope on the model."""

    name = "breaks"

    def __init__(self, error):
        self.error = error

    def apply(self, text, number, conditions):
        def hooks(model, undo):
            undo.callback(model.model.layers[0].register_forward_hook(lambda *_: None).remove)
            undo.callback(model.model.layers[1].register_forward_pre_hook(self.fail).remove)

        return Trial(text, hooks=hooks if number else None)

    def fail(self, *_):
        raise self.error


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_leaves_the_model_as_it_was(error):
    model = build("llama")
    state, before = state_of(model), brute.plain(model, brute.texts()[0])
    with pytest.raises(error):
        run(model, [EvictKeys("sinks"), Breaks(error)])
    assert state_of(model) == state and torch.equal(brute.plain(model, brute.texts()[0]), before)
    run(model, [Shift(3)])  # and can be run again


def nested(slots):
    model = build("llama")
    with slots(model):
        run(model, EVERY[:1])


@pytest.mark.slow
def test_all_texts_start_and_end_where_they_may():
    """The shortest text allowed leaves two tokens to score."""
    texts = [text[: START + 3] for text in brute.texts()]
    record = run(build("llama"), [EvictKeys("sinks")], texts)
    assert np.isfinite(record.nll).sum(["sequence", "token"]).values.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: run(build("llama"), EVERY[:1], start=51), "53 tokens leaves nothing to score from query 51 on"),
        (lambda: run(build("llama"), EVERY[:1], start=1), "start=1"),
        (lambda: run(build("llama"), EVERY[:1], sinks=0), "sinks=0"),
        (lambda: run(build("llama"), EVERY[:1], first=0), "first=0"),
        (lambda: run(build("llama"), EVERY[:1], seed=-1), "seed=-1"),
        (lambda: run(build("llama"), EVERY[:1], draws=1), "draws=1 is not a whole number of 2 or more"),
        (lambda: run(build("llama"), EVERY[:1], draws=2.5), r"draws=2\.5"),
        (
            lambda: run(build("llama"), [EvictKeys("sinks", 1)], draws=37),
            "draws=37 .* in 36 ways; give draws=36 or few",
        ),
        (lambda: run(build("llama"), EVERY[:1], sinks=36), "36 of the 40 tokens"),
        (lambda: run(build("llama"), []), "no intervention was given"),
        (lambda: run(build("llama"), [Shift(3), Shift(3)]), "two interventions are called"),
        (lambda: run(build("llama"), ["sinks"]), "'sinks' is not an intervention; give instances such as"),
        (lambda: run(build("llama"), EvictKeys), "is not an intervention"),
        (lambda: run(build("llama"), EVERY[:1], [torch.ones(1)]), "floating-point"),
        (lambda: run(build("llama"), EVERY[:1], []), "no text at all"),
        (lambda: run(build("llama"), EVERY[:1], torch.full((1, 60), 500)), "500 is outside the vocabulary"),
        (lambda: run(build("gpt2"), EVERY[:1], torch.ones(1, 513, dtype=torch.long)), "512 positions"),
        (lambda: run(build("llama").train(), EVERY[:1]), "training mode"),
        (lambda: run(build("llama").model, EVERY[:1]), "LlamaModel has no language head"),
        (lambda: run(build("bert"), EVERY[:1]), "BertModel .* attention that is not causal"),
        (lambda: run("llama", EVERY[:1]), "expected a loaded model"),
        (lambda: nested(capture), "carries a scope"),
        (lambda: nested(attached), "carries a scope"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_in_a_sentence(make, message):
    with pytest.raises(SinkscopeError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_one_intervention_needs_no_list_and_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = run(build("llama"), Shift(3))
    assert record.policy.values.tolist() == ["nothing", "start 3 later", "cut 3 behind the sinks"]


@pytest.mark.slow
def test_each_draw_reads_each_text_once_and_the_line_of_progress_says_which_it_is(model, forwards, monkeypatch):
    """The usual ones: 91 readings of a text with 20 draws, 19 with two; the most attended keys take one of a prefix."""
    said: list[str] = []

    class Bar(contextlib.nullcontext):
        def set_description(self, words, refresh):
            said.append(words)

        def update(self, count):
            pass

        def __enter__(self):
            return self

    monkeypatch.setattr("sinkscope.experiments.interventions.progress_bar", lambda *_, **__: Bar())
    texts = brute.texts()[:1]
    for draws, readings in ((None, 91), (2, 19)):
        said.clear()
        forwards.count = 0
        record = run(model, texts=texts, draws=draws)
        assert len(said) == int(record["draws"].sum()) == readings
        assert forwards.count == readings + 1
    assert said[0] == "nothing" and "evict random, draw 2 of 2" in said
