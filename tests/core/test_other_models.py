"""Models outside the families: of one's own, wrapped, hybrid, or without attention to measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from sinkscope import LogSumExp, Maps, MeanLogits, SinkMass, SinkscopeError, attention_maps, capture, measure
from tests.core.recorded import record_of
from tests.support.zoo import build, inputs


class Reader(nn.Module):
    """Attention of one's own, outside transformers: the scores are known in advance."""

    class PlainAttention(nn.Module):
        def __init__(self, scores):
            super().__init__()
            self.scores = nn.Parameter(scores)

        def forward(self, values):
            return self.scores.softmax(-1) @ values

    def __init__(self, scores):
        super().__init__()
        self.layers = nn.ModuleList([self.PlainAttention(scores)])

    def forward(self, values):
        return self.layers[0](values)


def test_a_model_of_ones_own_is_watched():
    scores = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    scores = scores.masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -torch.inf)
    model = Reader(scores).eval()
    with torch.no_grad(), capture(model, [LogSumExp(), MeanLogits(6), Maps(resolution=None)]) as scope:
        model(torch.randn(1, 2, 6, 4))
    np.testing.assert_allclose(scope.record.log_sum_exp[0, 0], scores[0].logsumexp(-1), atol=1e-6)
    np.testing.assert_allclose(scope.record.mean_logit[0], scores[0].masked_fill(scores[0].isinf(), torch.nan))
    np.testing.assert_allclose(scope.record.attention_map[0, 0], scores[0].softmax(-1), atol=1e-6)


class Wrapper(nn.Module):
    """A module of one's own around a transformers model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **given):
        return self.model(**given)


@pytest.mark.parametrize("name", ["mistral_sliding", "deepseek_v3", "gpt_oss", "falcon_rotary"])
def test_a_wrapped_model_is_measured_as_itself(name):
    given = inputs(name)
    wrapped = record_of(Wrapper(build(name)).eval(), **given, use_cache=True)
    for variable, values in record_of(build(name), **given, use_cache=True).data_vars.items():
        np.testing.assert_array_equal(wrapped[variable], values, err_msg=str(variable))


def test_layers_keep_their_numbers_in_a_hybrid_model():
    config = JambaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, attn_layer_period=4, attn_layer_offset=2, expert_layer_period=8, num_experts=1,
        num_experts_per_tok=1, use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = JambaForCausalLM(config).eval()
    record = measure(model, torch.arange(3, 20), [SinkMass(), Maps(layers=[2])])
    assert record["layer"].values.tolist() == [2] and record.sink_mass.shape == (1, 1, 2, 17, 4)
    with pytest.raises(SinkscopeError, match="layer 0 is out of range"):
        capture(model, [Maps(layers=[0])])


def test_maps_of_later_runs_of_a_module_can_be_asked_for():
    config = AlbertConfig(
        vocab_size=64, embedding_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AlbertModel._from_config(config, attn_implementation="eager").eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        own = model(ids, output_attentions=True).attentions
    maps = attention_maps(model, ids, layers=[2, 3])
    np.testing.assert_allclose(maps, torch.stack([own[2][0], own[3][0]]), atol=1e-6)
    with pytest.raises(SinkscopeError, match="layer 4 is out of range: the model has attention in layers 0 to 3"):
        attention_maps(model, ids, layers=[4])


def test_several_models_in_one():
    model = nn.Module()
    model.tower, model.language_model = build("vit"), build("llama")
    with pytest.raises(SinkscopeError, match=r"several models with attention .*language_model.*does not say which"):
        capture(model)


def test_attention_that_calls_no_softmax():
    class OddAttention(nn.Module):
        def forward(self, values):
            return values.cumsum(-2)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = OddAttention()

        def forward(self, values):
            return self.attention(values)

    model = Odd()
    with torch.no_grad(), capture(model) as scope:
        model(torch.randn(1, 5, 4))
    with pytest.raises(SinkscopeError, match="no softmax"):
        _ = scope.record


def test_a_model_without_attention_is_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(SinkscopeError, match="no attention modules"):
        capture(model)


def test_not_a_model():
    with pytest.raises(SinkscopeError, match=r"sinkscope\.load"):
        capture("gpt2")
