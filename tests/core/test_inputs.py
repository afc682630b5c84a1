"""Padding, masks of one's own, embeddings and pixels; what cannot be measured is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope import SinkscopeError, capture
from tests.core.recorded import FULL, record_of
from tests.support.zoo import VISION, build, inputs


@pytest.mark.slow
def test_padding_on_the_right_is_removed_too():
    model, given = build("llama"), inputs("llama")
    mask = torch.ones_like(given["input_ids"])
    mask[0, 25:] = 0
    with torch.no_grad():
        with capture(model, FULL) as alone:
            model(given["input_ids"][:1, :25])
        with capture(model, FULL) as scope:
            model(**given, attention_mask=mask)
    assert scope.record.length.values.tolist() == [25, 40]
    for name in ("sink_mass", "entropy"):
        np.testing.assert_allclose(scope.record[name][0, :, :, :25], alone.record[name][0], atol=1e-5)
        assert bool(scope.record[name][0, :, :, 25:].isnull().all())


def test_a_mask_of_the_users_own_is_honoured():
    model, given = build("llama"), inputs("llama", batch=1)
    visible = torch.ones(40, 40, dtype=torch.bool).tril()
    visible[10:, 0] = False  # nobody sees the first token from the tenth on
    with torch.no_grad(), capture(model, FULL) as scope:
        model(**given, attention_mask=visible[None, None])
    assert float(scope.record.sink_mass[..., 10:, 0].max()) == 0
    np.testing.assert_allclose(scope.record.attention_map.sum("map_key"), 1, atol=1e-5)


def test_an_encoder_with_a_mask_of_one_row_and_many_tokens():
    model, given = build("bert"), inputs("bert", batch=1, tokens=300)
    seen = torch.ones(1, 1, 1, 300, dtype=torch.bool)
    seen[..., 250:] = False
    record = record_of(model, **given, attention_mask=seen)
    assert float(record.attention_map[..., 250:].max()) == 0
    np.testing.assert_allclose(record.attention_map.sum("map_key"), 1, atol=1e-5)


def test_embeddings_in_place_of_tokens():
    model, ids = build("llama"), inputs("llama", batch=1)["input_ids"]
    embedded = record_of(model, inputs_embeds=model.get_input_embeddings()(ids))
    np.testing.assert_allclose(embedded.attention_map, record_of(model, input_ids=ids).attention_map, atol=2e-6)
    assert "token_id" not in embedded.coords and embedded.attrs["bos"] == "unknown"
    with torch.no_grad(), capture(model) as scope:  # the prompt as embeddings, what follows as tokens
        model.generate(
            inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=4, do_sample=False, pad_token_id=0
        )
    assert (
        scope.record.token_id.values[0, :40].tolist() == [-1] * 40 and (scope.record.token_id.values[0, 40:] >= 0).all()
    )


@pytest.mark.slow
def test_vision_models_have_no_token_ids():
    for name in VISION:
        model, given = build(name), inputs(name)
        with torch.no_grad(), capture(model) as scope:
            model(**given)
        assert "token_id" not in scope.record.coords and scope.record.attrs["causal"] == 0
        assert scope.record.length.values.tolist() == [scope.record.sizes["query"]] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"position_ids": torch.cat([torch.arange(20), torch.arange(20)])[None]}, "positions restart"),
        ({"output_attentions": True}, r"sinkscope\.attention_maps"),
    ],
)
def test_inputs_that_cannot_be_measured(given, message):
    model, ids = build("llama"), inputs("llama", batch=1)["input_ids"]
    with torch.no_grad(), capture(model), pytest.raises(SinkscopeError, match=message):
        model(ids, **given, use_cache=False)
    with capture(model), pytest.raises(SinkscopeError, match="nothing to read"):
        model()


@pytest.mark.parametrize(
    "odd", [torch.Tensor.to_sparse, lambda ids: ids.to("meta"), lambda ids: torch.nested.nested_tensor([*ids])]
)
def test_ids_that_hold_no_plain_numbers_are_refused_wherever_texts_are_read(odd):
    model, ids = build("llama"), odd(inputs("llama", batch=2)["input_ids"])
    reads = (sinkscope.measure, sinkscope.perplexity, sinkscope.attention_maps, sinkscope.run_interventions)
    for read in reads:
        for given in (ids, [ids]):
            with pytest.raises(SinkscopeError, match=r"token ids are (on torch's meta|a sparse, nested)"):
                read(model, given)
    with pytest.raises(SinkscopeError, match=r"token ids are (on torch's meta|a sparse, nested)"):
        sinkscope.sweep({"models": {"tiny": model}, "texts": {"odd": ids}})


def test_tokens_outside_the_vocabulary_are_named():
    model = build("llama")
    for ids, named in ((torch.tensor([[1, 2, 128]]), "128"), (torch.tensor([[1, -3]]), "-3")):
        with (
            pytest.raises(SinkscopeError, match=f"token id {named} is outside the vocabulary of 128"),
            capture(model),
        ):
            model(ids)
