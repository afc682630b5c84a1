"""Changed texts against plain runs of the model on token ids changed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sinkscope import Repeat, ReplaceTokens, Shift, SinkscopeError, intervene, run_interventions
from sinkscope.experiments.intervention import Conditions
from tests.experiments import brute
from tests.experiments.brute import LINE_BREAK, START
from tests.support.zoo import VOCABULARY, build

CONDITIONS = Conditions(START, 4, 0, brute.Tokenizer())


def record_of(intervention, name: str = "llama"):
    return run_interventions(
        build(name),
        brute.texts(),
        [intervention],
        tokenizer=brute.Tokenizer(),
        start=START,
        first=2,
        draws=2,
        progress=False,
    )


def line_breaks_first(text, count):
    return torch.cat([torch.full((count,), LINE_BREAK), text[count:]])


@pytest.mark.slow
@pytest.mark.parametrize("count", [None, 2])
def test_line_breaks_take_the_place_of_the_first_tokens(count):
    chosen = ReplaceTokens("line breaks", count)
    record = record_of(chosen)
    for number, text in enumerate(brute.texts()):
        brute.check(record, chosen.name, number, brute.dense("llama", line_breaks_first(text, count or 4)), 2)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["line breaks", "random"])
def test_the_control_puts_the_same_tokens_in_as_many_other_places(by):
    chosen = ReplaceTokens(by)
    record = record_of(chosen)
    prepared = [each.prepare(build("llama"), [], CONDITIONS) for each in (chosen, chosen.control())]
    for number, text in enumerate(brute.texts()):
        first, other = (each.apply(text, number, CONDITIONS).tokens for each in prepared)
        replaced = (first != text).nonzero().flatten().tolist()
        elsewhere = (other != text).nonzero().flatten().tolist()
        assert set(replaced) <= set(range(4)) and set(elsewhere) <= set(range(4, START))
        places = CONDITIONS.others(number, 4)
        assert set(elsewhere) <= set(places) and torch.equal(other[places], first[:4])
        assert (first[:4] == LINE_BREAK).all() or by == "random"
        for each in prepared:
            runs = [each.apply(text, number, replace(CONDITIONS, draw=draw)).tokens for draw in range(2)]
            assert torch.equal(*runs) == (each is prepared[0] and by == "line breaks")
            brute.check(record, each.name, number, brute.mean(brute.dense("llama", run) for run in runs), 2)
    assert record.control.values.tolist() == ["", prepared[1].name, ""]


def test_random_tokens_are_of_the_whole_vocabulary_and_of_the_seed():
    chosen, text = ReplaceTokens("random").prepare(build("llama"), [], CONDITIONS), brute.texts()[0]
    drawn = torch.cat([chosen.apply(text, number, CONDITIONS).tokens[:4] for number in range(1000)])
    assert drawn.min() == 0 and drawn.max() == VOCABULARY - 1
    counts = torch.bincount(drawn, minlength=VOCABULARY)  # 31 of each; six standard deviations are 33
    assert counts.max() < 64
    again = chosen.apply(text, 3, CONDITIONS).tokens
    assert torch.equal(again, chosen.apply(text, 3, CONDITIONS).tokens)
    assert not torch.equal(again, chosen.apply(text, 3, Conditions(START, 4, 1)).tokens)


@pytest.mark.slow
def test_a_later_start_scores_the_same_tokens_at_their_places():
    record = record_of(Shift(10))
    for number, text in enumerate(brute.texts()):
        cut = torch.cat([text[:4], text[14:]])
        for name, left in (("start 10 later", text[10:]), ("cut 10 behind the sinks", cut)):
            twin = brute.dense("llama", left)
            found = record.sel(policy=name).isel(sequence=number)
            # the last tokens of the text left over are those from START + 1 on
            scored = len(text) - START - 1
            np.testing.assert_allclose(found.nll[START + 1 : len(text)], twin.losses[-scored:], atol=3e-4, rtol=1e-4)
            assert np.isnan(found.nll[: START + 1]).all() and np.isnan(found.nll[len(text) :]).all()
            mass = twin.maps[..., START - 10 :, :2].sum(-1).mean(-1)
            np.testing.assert_allclose(found.sink_mass, mass, atol=2e-5)
            np.testing.assert_allclose(found.output_norm, twin.norms[..., START - 10 :].mean(-1), rtol=2e-4)
    assert record.control.values.tolist() == ["", "cut 10 behind the sinks", ""]


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, 9])
def test_repeating_runs_one_token_again_and_again_and_its_control_shuffles(token):
    record = record_of(Repeat(token))
    name = "repeat one token" if token is None else "repeat token 9"
    for number, text in enumerate(brute.texts()):
        repeated = Repeat(token).apply(text, number, CONDITIONS).tokens
        assert len(repeated) == len(text) and len(repeated.unique()) == 1
        assert int(repeated[0]) == token if token is not None else int(repeated[0]) in text
        brute.check(record, name, number, brute.dense("llama", repeated), 2)
        shuffled = Repeat(shuffled=True).apply(text, number, CONDITIONS).tokens
        assert torch.equal(shuffled.sort().values, text.sort().values) and not torch.equal(shuffled, text)
        brute.check(record, "shuffle all tokens", number, brute.dense("llama", shuffled), 2)


@pytest.mark.slow
def test_where_tokens_and_places_are_alike_attention_is_even():
    """gpt2 with its position embeddings at zero cannot tell copies of a token apart; as it is, it can."""
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
    options = dict(start=START, first=2, progress=False)
    flat, real = (run_interventions(each, brute.texts(), [Repeat()], **options) for each in (model, build("gpt2")))
    for number, length in enumerate(brute.LENGTHS):
        even = np.mean([2 / (query + 1) for query in range(START, length)])
        alike, placed = (
            each.sink_mass.sel(policy="repeat one token").isel(sequence=number).values for each in (flat, real)
        )
        np.testing.assert_allclose(alike, even, rtol=1e-5)
        assert abs(placed / even - 1).max() > 0.01


@pytest.mark.slow
def test_losses_over_other_tokens_have_no_ratio():
    table = intervene(build("llama"), brute.texts(), [Repeat(), Shift(10)], start=START, progress=False)
    rows = table.set_index("intervention")
    for name in ("repeat one token", "shuffle all tokens"):
        assert rows.loc[name, ["ratio", "ratio_low", "ratio_high", "over_control"]].isna().all()
        assert np.isfinite(rows.loc[name, ["ppl", "sink_mass"]].astype(float)).all()
        assert np.isnan(rows.loc[name, "mass_low"])  # of two texts there is no interval
    assert rows.loc["repeat one token", ["low", "high"]].isna().all()  # losses of one token again and again are alike
    assert np.isfinite(rows.loc["start 10 later", ["ratio", "over_control"]].astype(float)).all()


def test_a_family_outside_the_attention_interface_takes_changed_texts():
    record = record_of(ReplaceTokens("line breaks"), "bloom")
    model = build("bloom")
    for number, text in enumerate(brute.texts()):
        changed = line_breaks_first(text, 4)
        expected = brute.losses(brute.plain(model, changed), changed)[START:]
        found = record.nll.sel(policy="first tokens to line breaks").isel(sequence=number)
        np.testing.assert_allclose(found[START + 1 : len(text)], expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            maps = torch.stack(model(changed[None], output_attentions=True).attentions, 1)[0].double().numpy()
        mass = maps[..., START:, :2].sum(-1).mean(-1)
        np.testing.assert_allclose(
            record.sink_mass.sel(policy="first tokens to line breaks").isel(sequence=number), mass, atol=1e-5
        )
    assert "output_norm" not in record


class TwoForABreak(brute.Tokenizer):
    def encode(self, text, add_special_tokens=False):
        return [3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReplaceTokens("spaces"), "by='spaces' is unknown; give one of line breaks, random"),
        (lambda: ReplaceTokens("random", 0), "count=0"),
        (lambda: Shift(0), "tokens=0"),
        (lambda: Shift(2.5), "tokens=2.5"),
        (lambda: Repeat(-1), "token=-1"),
        (lambda: refused(ReplaceTokens("line breaks")), "needs a tokenizer"),
        (lambda: refused(ReplaceTokens("line breaks"), tokenizer=TwoForABreak()), "no single token for a line break"),
        (lambda: refused(ReplaceTokens("random", 20)), "20 of the 40 tokens"),
        (lambda: refused(Shift(36)), "`start 36 later` leaves nothing"),
        (lambda: refused(Repeat(VOCABULARY)), f"token id {VOCABULARY} is outside the vocabulary"),
    ],
)
def test_what_makes_no_text_is_refused_before_anything_runs(make, message):
    with pytest.raises(SinkscopeError, match=message):
        make()


def refused(intervention, **options):
    model = build("llama")
    model.forward = lambda *_, **__: pytest.fail("the model ran")
    run_interventions(model, brute.texts(), [intervention], start=START, progress=False, **options)
