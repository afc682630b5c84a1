"""perplexity() of what a processor made: losses of the text given its images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, pad

from sinkscope import (
    Dense,
    Recompute,
    SinkCache,
    SinkscopeError,
    SinkWindow,
    Softmax1,
    Window,
    attached,
    perplexity,
    ppl_table,
)
from sinkscope.hf.caches import with_cache
from sinkscope.scope.measure import texts_of
from tests.support.several import ANSWER, IMAGE, IMAGE_TEXT, PACKED, build_several, inputs_of
from tests.support.tokenizers import byte_level
from tests.support.zoo import build

TEXT = torch.randint(3, 90, (2, 30), generator=torch.Generator().manual_seed(8))


def losses_of(logits, ids, unscored):
    """[sequence, token], NaN for the first token and those unscored; the labels of transformers leave them out too."""
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:].clamp(max=127), reduction="none")
    return pad(losses, (1, 0), value=torch.nan).masked_fill(unscored, torch.nan)


def embeddings_of(model, given):
    """What the language model of a whole one gets: [sequence, token, width]."""
    seen, language = [], model.get_decoder()
    hook = language.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**given)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", IMAGE_TEXT)
def test_losses_of_the_text_are_those_that_the_model_itself_gives(name):
    model, given = build_several(name), inputs_of(name)
    for gate in (each for path, each in model.named_parameters() if path.endswith("_gate")):
        gate.data.fill_(0.7)  # of mllama, closed in a new model
    record = perplexity(model, given, marked="yes")
    with torch.no_grad():
        logits = model(**given, use_cache=False).logits
        unscored = given["input_ids"] == IMAGE
        if name == "paligemma":  # the prefix, in which all see each other
            unscored[:, :-ANSWER] = True
        own = float(model(**given, labels=given["input_ids"].masked_fill(unscored, -100)).loss)
    np.testing.assert_allclose(record.nll[0], losses_of(logits, given["input_ids"], unscored), atol=2e-6)
    assert float(record.nll.mean()) == pytest.approx(own, abs=1e-5)
    np.testing.assert_array_equal(record.is_image, given["input_ids"] == IMAGE)
    assert record.policy.values.tolist() == ["dense"] and record.attrs["marked"] == "yes"
    assert ppl_table(record).ppl.item() == pytest.approx(np.exp(own), rel=1e-5)
    other = perplexity(model, given | {"pixel_values": -given["pixel_values"]})
    behind = int((given["input_ids"][0] == IMAGE).nonzero()[-1]) + 1
    if name != "mllama":  # where the whole text looks across at the image
        np.testing.assert_array_equal(other.nll[0, :, 1:6], record.nll[0, :, 1:6])
    assert bool((other.nll[0, :, behind:] != record.nll[0, :, behind:]).any())


def test_tokens_that_the_query_before_them_sees_are_not_scored():
    model, given = build_several("paligemma"), inputs_of("paligemma")
    whole = given | {"token_type_ids": torch.zeros_like(given["input_ids"])}
    with pytest.raises(SinkscopeError, match="each query sees the token that it would predict"):
        perplexity(model, whole)
    with pytest.raises(SinkscopeError, match="has attention that is not causal"):
        perplexity(model, given, [SinkWindow(2, 9)])
    with pytest.raises(SinkscopeError, match="has attention that is not causal"):
        perplexity(model, given["input_ids"])
    padded = {key: pad(each, (5, 0)) if each.shape == given["input_ids"].shape else each for key, each in given.items()}
    scored = perplexity(model, padded).nll
    np.testing.assert_array_equal(scored.isnull(), perplexity(model, given).nll.isnull())
    assert int(scored.notnull().sum()) == 2 * ANSWER


@pytest.mark.parametrize("side", [(5, 0), (0, 5)])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl"])
def test_padding_is_no_part_of_a_text(name, side):
    model, given = build_several(name), inputs_of(name)
    padded = dict(given)
    for key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in padded:
            padded[key] = pad(given[key], side)
    np.testing.assert_allclose(perplexity(model, padded).nll, perplexity(model, given).nll, atol=2e-5)
    if name == "llava":
        with pytest.raises(SinkscopeError, match="a policy acts on texts without padding"):
            perplexity(model, padded, [SinkWindow(2, 9)])


@pytest.mark.parametrize("policy", [Window(9), SinkWindow(2, 9), Window(9, layers=[1])])
@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_policies_act_where_images_are_tokens_in_a_row(name, policy):
    """The reference is a text of the same embeddings, read by the language model alone."""
    model, given = build_several(name), inputs_of(name)
    language, embeddings = model.get_decoder(), embeddings_of(model, given)
    with torch.no_grad(), attached(language, policy=policy):
        logits = model.get_output_embeddings()(language(inputs_embeds=embeddings).last_hidden_state)
    expected = losses_of(logits, given["input_ids"], given["input_ids"] == IMAGE)
    record = perplexity(model, given, [Dense(), policy])
    np.testing.assert_allclose(record.nll[1], expected, atol=2e-5)
    assert bool((record.nll[0, :, 20:] != record.nll[1, :, 20:]).all())


@pytest.mark.slow
def test_a_window_over_an_image_is_that_of_one_token_at_a_time():
    model, given = build_several("llava"), inputs_of("llava")
    language, embeddings = model.get_decoder(), embeddings_of(model, given)
    with torch.no_grad():
        with SinkCache(language, 2, 9) as cache:
            states = [language(inputs_embeds=each, **with_cache(language, cache))[0] for each in embeddings.split(1, 1)]
        expected = losses_of(
            model.get_output_embeddings()(torch.cat(states, 1)), given["input_ids"], given["input_ids"] == IMAGE
        )
    np.testing.assert_allclose(perplexity(model, given, [SinkWindow(2, 9)]).nll[0], expected, atol=2e-5)


@pytest.mark.slow
def test_a_normaliser_acts_too():
    model, given = build_several("gemma3"), inputs_of("gemma3")
    with torch.no_grad(), attached(model, normaliser=Softmax1()):
        logits = model(**given).logits
    record = perplexity(model, given, normaliser=Softmax1())
    np.testing.assert_allclose(
        record.nll[0], losses_of(logits, given["input_ids"], given["input_ids"] == IMAGE), atol=1e-5
    )
    assert "Softmax1" in record.attrs["normaliser"]


@pytest.mark.slow
def test_what_a_tokenizer_made_is_texts():
    model, mask = build("llama"), torch.ones_like(TEXT)
    mask[0, :7] = 0
    ways = [Dense(), SinkWindow(2, 9), Recompute(8)]
    record = perplexity(model, {"input_ids": TEXT, "attention_mask": mask}, ways)
    expected = perplexity(model, [TEXT[0, 7:], TEXT[1]], ways)
    np.testing.assert_array_equal(record.nll, expected.nll)
    assert "is_image" not in record.coords and record.length.values.tolist() == [23, 30]
    with pytest.warns(UserWarning, match="nothing is evicted"):
        assert perplexity(model, {"input_ids": TEXT}).policy.size == 4


def test_the_text_of_tokens_is_in_the_record():
    model, given, tokenizer = build_several("llava"), inputs_of("llava"), byte_level()
    record = perplexity(model, given, tokenizer=tokenizer)
    assert record.token_text.shape == record.token_id.shape


@pytest.mark.slow
def test_wrappers_are_read_as_what_is_inside_them():
    given, expected = inputs_of("llava"), perplexity(build_several("llava"), inputs_of("llava"))
    adapted = get_peft_model(build_several("llava"), LoraConfig(target_modules=["q_proj"])).eval()
    for model in (adapted, torch.compile(build_several("llava"), backend="eager")):
        np.testing.assert_allclose(perplexity(model, given).nll, expected.nll, atol=2e-6)
        with pytest.raises(SinkscopeError, match="LlavaForConditionalGeneration reads no pictures"):
            perplexity(model, given | {"pictures": given["pixel_values"]})


@pytest.mark.parametrize(
    ("name", "policies", "message"),
    [
        ("llava", [Recompute(8)], "`recompute 8` reads windows of the text as texts of their own, and the images"),
        ("gemma3", [Window(9)], "lets some tokens see later ones, as those of an image"),
        *((name, [SinkWindow(2, 9)], "gives the tokens of an image positions in two dimensions") for name in PACKED),
    ],
)
def test_policies_that_cannot_act_are_refused_by_their_reason(name, policies, message):
    model, given = build_several(name), inputs_of(name)
    with pytest.raises(SinkscopeError, match=message):
        perplexity(model, given, policies)
    assert perplexity(model, given).nll.notnull().any()


@pytest.mark.slow
def test_what_is_wrong_with_the_input_is_said():
    model, given = build_several("llava"), inputs_of("llava")
    cases = [
        (model.get_decoder(), given, {}, "LlamaModel reads no pixel_values"),
        (build("llama"), given, {}, "LlamaForCausalLM reads no pixel_values"),
        (model, given | {"input_ids": TEXT, "attention_mask": TEXT * 0 + 1}, {}, "no token of the text stands"),
        (model, {"input_ids": given["input_ids"]}, {}, "stand for an image, but there is none"),
        (model, {"pixel_values": given["pixel_values"]}, {}, "no input_ids"),
        (model, given | {"logits_to_keep": 1}, {}, "gives 2 x 1 logits for 2 x 36 tokens"),
        (model, given, {"max_memory": 1 << 30}, "max_memory= is for batches of texts"),
        (model, given, {"checkpoint": "never made"}, "checkpoint= is for batches of texts"),
        (build_several("bart"), inputs_of("bart"), {}, "it reads with an encoder and writes with a decoder"),
    ]
    for each, inputs, options, message in cases:
        with pytest.raises(SinkscopeError, match=message):
            perplexity(each, inputs, **options)
    with pytest.raises(SinkscopeError, match=r"token ids of type dict are not texts.* \(the input_ids of this\)"):
        texts_of(given)
