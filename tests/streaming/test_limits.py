"""What a user should know of a policy on a text, as notes and as warnings."""

from __future__ import annotations

import warnings
from typing import ClassVar

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sinkscope import (
    Dense,
    LayerProbe,
    Recompute,
    SinkMass,
    SinkscopeError,
    SinkWindow,
    Variable,
    Window,
    attention_maps,
    measure,
)
from sinkscope.scope.binding import check_limits, limit_notes
from tests.support.model_state import hooks_of
from tests.support.zoo import build


@pytest.mark.parametrize(
    ("policy", "tokens", "said"),
    [
        (Window(40), 41, []),
        (Window(40), 40, ["40 tokens fit into the cache of `window 40`"]),
        (SinkWindow(4, 36), 39, ["39 tokens fit into the cache of `sinks 4+36`"]),
        (Recompute(40), 40, ["nothing is evicted"]),
        (Window(550), 600, ["a cache of 550 tokens is longer than the 512 positions"]),
        (Window(550), 520, ["longer than the 512 positions", "520 tokens fit into"]),
        (Dense(), 600, []),
    ],
)
def test_notes_are_returned_without_a_warning_and_warned_of_word_by_word(policy, tokens, said):
    model = build("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = limit_notes(model, policy, tokens)
    assert len(notes) == len(said) and all(part in note for part, note in zip(said, notes, strict=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert check_limits(model, policy, tokens) is None
    assert [str(each.message) for each in caught] == notes


@pytest.mark.parametrize(
    ("name", "policy", "tokens"),
    [
        ("gpt2", Window(8), 20), ("gpt2", Dense(), 520), ("mpt", SinkWindow(4, 8, "original"), 20),
        ("mpt", SinkWindow(4, 8, bias=1.0), 20),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_by_both_in_the_same_words(name, policy, tokens):
    said = []
    for ask in (limit_notes, check_limits):
        with pytest.raises(SinkscopeError) as caught:
            ask(build(name), policy, tokens)
        said.append(str(caught.value))
    assert said[0] == said[1]


_SMALL = dict(vocab_size=128, num_hidden_layers=1, num_attention_heads=2)
TABLES = {  # name: the model, and the longest text that it can read
    **{name: (lambda name=name: build(name), 512) for name in ("gpt2", "gpt_neo", "gptj", "opt", "mpt", "bert")},
    "roberta": (  # of 64 positions two are for padding
        lambda: made("roberta", hidden_size=32, intermediate_size=32, max_position_embeddings=64, **_SMALL), 62,
    ),
    "openai-gpt": (lambda: made("openai-gpt", n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=128), 64),
}  # fmt: skip


def made(kind, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()


def ids(tokens):
    return torch.randint(3, 128, (1, tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TABLES)
def test_a_text_past_a_table_of_positions_is_refused_and_the_longest_is_read(name):
    make, longest = TABLES[name]
    model = make()
    with pytest.raises((IndexError, RuntimeError)), torch.no_grad():
        model(ids(longest + 1))
    assert measure(model, ids(longest), [SinkMass()]).sizes["query"] == longest
    text = ids(longest + 1)
    for run in (lambda: measure(model, text, [SinkMass()]), lambda: attention_maps(model, text)):
        with pytest.raises(SinkscopeError, match=f"has a table of {longest} positions, and the .* needs {longest + 1}"):
            run()


FAIL = {  # without a head or a cache, from which its limit can be told before
    "the encoder of bart": (
        lambda: AutoModel.from_config(
            AutoConfig.for_model(
                "bart", d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=128,
                max_position_embeddings=64,
            )
        ).eval().get_encoder(),
        64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAIL)
def test_where_the_model_fails_past_its_positions_that_is_said(name):
    make, longest = FAIL[name]
    model = make()
    hooks = hooks_of(model)
    assert measure(model, ids(longest), [SinkMass()]).sizes["query"] == longest
    for run in (measure, attention_maps):
        with pytest.raises(SinkscopeError, match=rf"failed on a text of {longest + 1} tokens .* {longest} positions"):
            run(model, ids(longest + 1))
    assert hooks_of(model) == hooks


def test_another_failure_of_a_model_is_its_own():
    model = build("bert")
    model.encoder.layer[1].register_forward_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        measure(model, ids(20), [SinkMass()])


def test_a_probe_that_fails_on_a_long_text_is_not_taken_for_the_positions():
    class Faulty(LayerProbe):
        makes: ClassVar = {"faulty": Variable(("sequence", "head"))}

        def observe(self, layer):
            raise IndexError("a fault of its own")

    with pytest.raises(IndexError, match="a fault of its own"):
        measure(build("llama"), ids(600), [Faulty()])


def test_positions_that_begin_anew_have_no_end():
    model = AutoModel.from_config(
        AutoConfig.for_model(
            "tapas", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, vocab_size=128,
        )
    ).eval()  # fmt: skip
    assert measure(model, ids(80), [SinkMass()]).sizes["query"] == 80


ENDLESS = {
    "a table that a longer text makes longer": dict(
        kind="xglm", d_model=32, num_layers=1, attention_heads=2, ffn_dim=32, max_position_embeddings=64
    ),
    "distances, and a limit that nobody keeps": dict(
        kind="deberta-v2", hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"],
    ),
    "no limit, which is written as -1": dict(kind="xlnet", d_model=32, n_layer=1, n_head=2, d_inner=32),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDLESS)
def test_positions_without_an_end_are_read_as_far_as_the_text_goes(case):
    options = dict(ENDLESS[case])
    config = AutoConfig.for_model(options.pop("kind"), vocab_size=128, **options)
    assert measure(AutoModel.from_config(config).eval(), ids(80), [SinkMass()]).sizes["query"] == 80
