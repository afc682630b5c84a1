"""`explore`: what it takes, and the one sentence it has for everything else."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import sinkscope
import sinkscope.figures
from sinkscope import Maps, SinkMass, SinkscopeError, capture, explore, from_maps, measure, perplexity, save_record
from sinkscope.explorer.app import Explorer
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.saving import code_of
from tests.explorer.hostile import Tokenizer
from tests.explorer.references import first, reader, text
from tests.support import several, talking
from tests.support.zoo import build, inputs

SENTENCE = "the cat sat on the mat and then the dog came and the cat ran away "


@pytest.fixture
def opened():
    """Explores, and closes what was opened once the test is over."""
    apps: list[Explorer] = []

    def explores(*given, **options) -> Explorer:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            apps.append(explore(*given, **options))
        assert apps[-1].wait(60)
        return apps[-1]

    yield explores
    for app in apps:
        app.close()
    assert not [each for each in threading.enumerate() if each.name == "sinkscope explorer"]


def is_read(app: Explorer) -> bool:
    return app.controller.problem == "" and app.controller.name == "dense"


# --- what a processor made --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl"])
def test_a_text_with_an_image_is_read_with_it_and_its_continuation_is_the_models_own(opened, name):
    model, given = several.build_several(name), several.inputs_of(name, 1)
    app = opened(model, None, given)
    controller, ids = app.controller, given["input_ids"]
    with torch.no_grad():
        logits = model(**given).logits[0]
        written = model.generate(**given, max_new_tokens=24, do_sample=False)
    losses = nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    np.testing.assert_allclose(controller.now.reading.losses[1:], losses, atol=1e-4)
    assert controller.now.continuation.text == str(written[0, ids.shape[1] :].tolist())
    maps = sinkscope.attention_maps(model, given)
    everything = slice(0, ids.shape[1])
    for number, unit in enumerate(controller.units):
        shown = np.nan_to_num(controller.maps.probabilities(number, everything, everything))
        np.testing.assert_allclose(shown, maps.sel(layer=unit.layer, head=unit.head), atol=1e-5)
    assert app.streaming is None and "beside" in app.problem.value
    controller.change(policy="recompute")
    assert app.wait(60) and "reads windows of a text, and here the text stands beside" in app.problem.value
    controller.change(policy="chosen", evicted=(0,))
    assert app.wait(60)
    if name == "gemma3":
        assert "lets some tokens see later ones" in app.problem.value
    else:
        with torch.no_grad(), sinkscope.attached(model, policy=controller.configuration.policy_slot):
            logits = model(**given).logits[0]
        losses = nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        np.testing.assert_allclose(controller.now.reading.losses[1:], losses, atol=1e-4)
        assert "model(**inputs)" in code_of(controller)


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_of_an_encoder_decoder_the_maps_of_its_decoder_are_shown(opened, name):
    model, given = several.build_several(name), several.inputs_of(name, 1)
    app = opened(model, None, given)
    assert "reads with an encoder and writes with a decoder" in app.problem.value and app.controller.model is None
    shown = app.controller.maps.probabilities(0, slice(0, 11), slice(0, 11))
    np.testing.assert_allclose(np.nan_to_num(shown), sinkscope.attention_maps(model, given)[0, 0], atol=1e-6)


def test_several_texts_and_padding_are_refused(opened):
    model, given = several.build_several("llava"), several.inputs_of("llava")
    with pytest.raises(SinkscopeError, match="the explorer shows one text"):
        explore(model, None, given)
    one = several.inputs_of("llava", 1)
    one["attention_mask"][0, 0] = 0
    with pytest.raises(SinkscopeError, match="shows a text without padding"):
        explore(model, None, one)


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_text_is_read_by_the_tokenizer_token_by_token(opened):
    words = talking.tokenizer()
    app = opened(build("llama"), words, SENTENCE)
    ids = words(SENTENCE)["input_ids"]
    assert is_read(app) and app.controller.tokens == [words.decode([each]) for each in ids]
    expected = perplexity(build("llama"), torch.tensor([ids]), [sinkscope.Dense()]).nll.values[0, 0]
    np.testing.assert_allclose(app.controller.now.reading.losses, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(60,), (1, 60)])
def test_ids_need_no_tokenizer_and_are_shown_as_numbers(opened, shape):
    app = opened(build("llama"), text=text().reshape(shape))
    assert is_read(app) and app.controller.tokens == [f"#{each}" for each in text().tolist()]
    assert app.streaming is not None and app.problem.value == ""


@pytest.mark.slow
def test_a_text_from_a_file_is_read(opened, tmp_path):
    (tmp_path / "text.txt").write_text(SENTENCE, encoding="utf-8")
    app = opened(build("llama"), talking.tokenizer(), tmp_path / "text.txt")
    assert is_read(app) and "cat" in "".join(app.controller.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "shown"), [(None, 2048), (50, 50), (np.int64(50), 50)])
def test_of_a_text_longer_than_the_limit_the_first_tokens_are_shown_and_that_is_said_and_stays_said(
    opened, length, shown
):
    app = opened(build("llama") if length else small_and_long(), text=text(2100), length=length)
    assert is_read(app) and len(app.controller.tokens) == shown
    assert f"its first {shown:,} tokens" in app.problem.value
    app.controller.change(policy="window", window=12)
    assert app.wait(60) and f"its first {shown:,} tokens" in app.problem.value
    assert f"{2100:,} tokens to read" in app.streaming.status.value


def small_and_long() -> nn.Module:
    """A model of one layer, quick to read two thousand tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = dict(
        vocab_size=128, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=4096, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **options)).eval()


@pytest.mark.slow
def test_two_tokens_are_enough_for_everything(opened):
    app = opened(build("llama"), text=text(2))
    assert is_read(app)
    for fields in (
        dict(policy="window"), dict(policy="sinks"), dict(policy="recompute"), dict(policy="chosen", evicted=(0,)),
        dict(policy="dense", dose=-2.0), dict(normaliser="sigmoid"),
    ):  # fmt: skip
        app.controller.change(**fields)
        assert app.wait(60) and app.controller.problem == "", app.controller.problem
        assert app.controller.name == app.controller.configuration.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: explore(build("llama"), talking.tokenizer(), ""), "the text is empty"),
        (lambda: explore(build("llama"), talking.tokenizer(), " \n\t "), "the text is empty"),
        (lambda: explore(build("llama"), Tokenizer(), "a"), "two tokens at least"),
        (lambda: explore(build("llama"), text=torch.tensor([5])), "two tokens at least"),
        (lambda: explore(build("llama"), text=torch.tensor(5)), "two tokens at least"),
        (lambda: explore(build("llama"), text=torch.tensor([], dtype=torch.long)), "an empty text"),
        (lambda: explore(build("llama"), text=torch.ones(9, dtype=torch.bool)), "got torch.bool"),
        (lambda: explore(build("llama"), text=torch.ones(9, dtype=torch.complex64)), "got torch.complex64"),
        (lambda: explore(build("llama"), text=torch.ones(9, dtype=torch.long, device="meta")), "meta device"),
        (lambda: explore(build("llama"), text=torch.tensor([[3, 4], [5, 6]])), "not one text"),
        (lambda: explore(build("llama"), text=torch.rand(9)), "got torch.float32"),
        (lambda: explore(build("llama"), text=torch.tensor([3, 128])), "token id 128 is outside the vocabulary"),
        (lambda: explore(build("llama"), text=torch.tensor([3, -2])), "token id -2 is outside the vocabulary"),
        (lambda: explore(build("llama"), talking.tokenizer(), torch.tensor([3, -2])), "outside the vocabulary"),
        (lambda: explore(build("llama"), talking.tokenizer(), torch.tensor([3, 10**9])), "outside the vocabulary"),
        (lambda: explore(build("llama"), None, SENTENCE), "no tokenizer beside it; pass tokenizer=..., or token ids"),
        (lambda: explore(build("llama")), "no tokenizer beside it"),
        (lambda: explore(build("llama"), talking.tokenizer(), [3, 4, 5]), "not a list"),
        (lambda: explore(build("llama"), talking.tokenizer(), "hf:/no/such/folder"), "no/such/folder"),
        *[
            (lambda length=length: explore(build("llama"), text=text(), length=length), f"length is {length!r}")
            for length in (0, 1, -5, 4097, 2.5, "many", True)
        ],
    ],
)
def test_a_text_or_a_length_that_cannot_be_shown_is_one_sentence(make, message):
    check_refusal(make, message)


def check_refusal(make, message) -> None:
    before = threading.active_count()
    with pytest.raises(SinkscopeError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value) and threading.active_count() <= before


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    check_refusal(lambda: explore(build("llama"), talking.tokenizer(), tmp_path / "none.txt"), "is not a file")


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "modernbert", "vit", "dinov2_with_registers"])
def test_encoders_and_vision_models_are_refused_whether_or_not_there_is_a_tokenizer(name):
    for tokenizer in (None, talking.tokenizer()):
        check_refusal(lambda tokenizer=tokenizer: explore(build(name), tokenizer, SENTENCE), "no policy applies to it")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: explore(build("llama").base_model, text=text()), "no language head"),
        (lambda: explore(nn.Linear(3, 3), text=text()), "no attention modules"),
        (lambda: explore(object(), text=text()), "not a object|no loaded model"),
        (lambda: explore("no/such/model/here", text=text()), "no model at"),
        (lambda: explore("nothing.nc"), "no record at"),
        (lambda: explore(build("llama"), text=text(), dtype="float32"), "loaded already"),
    ],
)
def test_what_is_no_decoder_is_one_sentence(make, message):
    check_refusal(make, message)


def test_a_model_inside_a_scope_is_refused_and_stays_in_its_scope():
    model = build("llama")
    with torch.no_grad(), capture(model) as scope:
        check_refusal(lambda: explore(model, text=text()), "carries a scope")
        model(text()[None])
    assert scope.record.sizes["query"] == 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gpt2", dict(policy="sinks", window=12), "learned absolute positions"),
        ("falcon_rotary", dict(policy="window", window=12), "attention interface"),
        ("mpt", dict(normaliser="ReLU"), "attention interface"),
        ("llama", dict(policy="sinks", sinks=16, window=12), "smaller than the 16 sinks"),
        ("llama", dict(policy="chosen", evicted=tuple(range(60))), "all 60 tokens are evicted"),
    ],
)
def test_a_configuration_that_cannot_be_is_said_in_place_and_nothing_is_stuck(opened, name, fields, message):
    app = opened(build(name), text=text())
    app.controller.change(**fields)
    assert app.wait(60) and message in app.problem.value and is_shown_dense(app)
    app.controller.reset()
    assert app.wait(60) and app.problem.value == "" and is_shown_dense(app)


def is_shown_dense(app: Explorer) -> bool:
    return app.controller.name == "dense" and "<b>dense</b>" in app.headline.value and "ready" in app.busy.value


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokens", "message"), [("gpt2", 520, "512 positions")])
def test_a_model_that_cannot_read_the_text_at_all_says_so_in_place(opened, name, tokens, message):
    app = opened(build(name), text=text(tokens))
    assert message in app.problem.value and app.controller.maps is None and app.saving.button.disabled
    app.close()


def test_weights_that_are_no_numbers_are_said_in_place(opened):
    broken = build("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    app = opened(broken, text=text())
    assert "NaN or infinity" in app.problem.value and "mlp.down_proj.weight" in app.problem.value


# --- records ----------------------------------------------------------------------------------------------------------


def record_of(tokens: int = 30, **options):
    model = build("llama")
    with torch.no_grad(), capture(model, [SinkMass(), Maps(**options)]) as scope:
        model(**inputs("llama", 1, tokens))
    return scope.record


@pytest.mark.slow
def test_a_record_and_its_file_are_looked_at_without_a_model(opened, tmp_path):
    record = record_of(resolution=None)
    for given in (record, save_record(record, tmp_path / "maps.nc"), str(tmp_path / "maps.nc")):
        app = opened(given)
        assert app.controller.name == "saved record" and app.controller.model is None
        assert app.controller.tokens == [f"#{each}" for each in record.token_id.values[0]]
        assert "opened without its model" in app.problem.value and "saved record" in app.headline.value
        shown, heads = np.nan_to_num(app.controller.row()[0]), record.sizes["head"]
        layer, head = divmod(app.controller.unit, heads)  # the one with the most sink mass
        mass = record.attention_map[0, ..., :4].sum("map_key").mean("map_query")
        assert float(mass[layer, head]) == float(mass.max())
        np.testing.assert_allclose(shown, record.attention_map.values[0, layer, head, -1], atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: record_of(100, resolution=64),
        lambda: record_of(layers=[1], heads=[2], resolution=None),
        lambda: record_of(resolution=None).isel(sequence=0).sel(layer=1, head=2),
        lambda: from_maps([np.tril(np.full((2, 2, n, n), 0.01)) for n in (5, 9)], [list("abcde"), list("abcdefghi")]),
        lambda: from_maps(np.full((1, 1, 6, 6), 1 / 6)),
    ],
    ids=["pooled", "one head", "selected", "ragged", "no tokens"],
)
def test_records_of_every_kind_can_be_looked_at(opened, make):
    app = opened(make())
    assert app.controller.problem == "" and app.pictures.map.pixels and app.pictures.atlas.pixels
    for query in (0, 2, len(app.controller.tokens) - 1):
        app.controller.choose_query(query)
        app.controller.numbers(query, 0)
    app.controller.show(scale="linear", hiding="renormalised")
    assert "opened without its model" in app.problem.value


@pytest.mark.slow
@pytest.mark.parametrize("fields", [dict(policy="sinks", window=12), dict(policy="recompute", window=6)])
def test_a_saved_view_opens_and_shows_the_same_map(opened, tmp_path, monkeypatch, fields):
    monkeypatch.setattr(sinkscope.figures, "explored", lambda record: Figure())  # which takes seconds
    app = opened(build("llama"), talking.tokenizer(), SENTENCE)
    app.controller.choose(5)
    app.controller.choose_query(15)
    app.controller.change(**fields)
    assert app.wait(60) and app.controller.name == app.controller.configuration.name != "dense"
    app.saving.folder.value = str(tmp_path)
    app.saving.button.click()
    tokens, tile, (row, _) = app.controller.tokens, app.controller.tile(), app.controller.row()
    shown = opened(tmp_path / "view.nc").controller
    assert shown.tokens == tokens and [str(unit) for unit in shown.units] == ["layer 1, head 1"]
    np.testing.assert_array_equal(shown.tile().pixels, tile.pixels)
    assert (shown.tile().query, shown.tile().key) == (tile.query, tile.key)
    shown.choose_query(15)
    np.testing.assert_allclose(shown.row()[0], row, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: measure(build("llama"), text()[None], probes=[SinkMass()]),
        lambda: perplexity(build("llama"), text()[None], [sinkscope.Dense()]),
    ],
)
def test_a_record_without_maps_is_one_sentence(make, tmp_path):
    record = make()
    check_refusal(lambda: explore(record), "holds no attention maps")
    check_refusal(lambda: explore(save_record(record, tmp_path / "none.nc")), "holds no attention maps")


def test_a_file_that_is_no_record_is_one_sentence(tmp_path):
    (tmp_path / "broken.nc").write_bytes(b"nothing")
    check_refusal(lambda: explore(tmp_path / "broken.nc"), "not a record of sinkscope")


@pytest.mark.slow
def test_what_is_read_is_what_the_reader_alone_reads(opened):
    app = opened(build("llama"), text=text())
    np.testing.assert_array_equal(app.controller.now.reading.losses, first(reader(), Configuration()).losses)
