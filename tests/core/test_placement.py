"""Models spread over places by accelerate, or of several dtypes: their numbers are those of the undivided ones."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

import sinkscope as S
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.text_model import TextModel
from sinkscope.hf.caches import with_cache
from sinkscope.models.rotary import find_rotations
from sinkscope.models.weights import weights_hash
from tests.streaming.one_token import one_token_run
from tests.support.zoo import build, inputs

IDS = inputs("llama", 1, 40)["input_ids"]
PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
ON_DISK = {"the embeddings": PARTS[:1], "a layer": PARTS[2:3], "the head": PARTS[-1:], "all": PARTS}


def tied():
    model = build("llama")
    model.lm_head.weight, model.config.tie_word_embeddings = model.model.embed_tokens.weight, True
    return model


def on_meta(model):
    """The weights that are not at hand; tied ones count under each name."""
    return [name for name, each in model.named_parameters(remove_duplicate=False) if each.is_meta]


def spread(model, on_disk):
    """The same model with some parts on the disk; the tied weights of two parts are in two places then."""
    places = dict.fromkeys(PARTS, "cpu") | dict.fromkeys(on_disk, "disk")
    model = dispatch_model(model, places, main_device="cpu", offload_dir=tempfile.mkdtemp())
    model(IDS)  # after which tied weights on the disk are taken off too
    assert on_meta(model)
    return model


def captured(model):
    with S.capture(model, S.ALL) as scope:
        model(IDS)
    return scope.record


def under_slots(model):
    slots = {"policy": S.SinkWindow(2, 6), "normaliser": S.Softmax1(), "probes": [S.SinkMass()]}
    with S.attached(model, **slots) as scope:
        model(IDS)
    return scope.record


def generated(model):
    for make in (lambda: S.SinkCache(model, 4, 12), lambda: S.ScoredCache(model, S.HeavyHitters(12, 6))):
        with make() as cache:
            yield model.generate(IDS, **with_cache(model, cache), max_new_tokens=8, do_sample=False)


def explored(model):
    text = TextModel(model, IDS[0])
    for result in text.read(Configuration(), 10, lambda: False):
        for name in ("losses", "scores", "text", "kv_bytes"):
            yield getattr(result, name, None)


def numbers(found):
    """Everything that a call gave, as arrays by name."""
    if hasattr(found, "data_vars"):
        return {name: found[name].values for name in found.data_vars}
    if isinstance(found, dict):
        return {name: each for key, value in found.items() for name, each in numbers(value).items() if name or key}
    if hasattr(found, "__next__") or isinstance(found, list):
        return {f"{place} {name}": each for place, value in enumerate(found) for name, each in numbers(value).items()}
    return {"": np.asarray(found.cpu() if isinstance(found, torch.Tensor) else found)}


ACTS = {
    "capture": captured,
    "slots": under_slots,
    "decompose": lambda model: S.decompose(model, IDS, cache_size=12, sinks=2, progress=False),
    "scored policy": lambda model: S.perplexity(model, IDS, [S.HeavyHitters(12, 6)], progress=False),
    "interventions": lambda model: S.run_interventions(
        model, IDS, [S.EvictKeys(), S.Shift(2)], start=20, sinks=2, progress=False
    ),
    "dose": lambda model: S.dose_response(model, IDS, [0.0, 1.0], start=20, progress=False),
    "generate": generated,
    "explore": explored,
}


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: build("llama"), tied], ids=["untied", "tied"])
@pytest.mark.parametrize("where", ON_DISK)
def test_a_model_spread_over_places_gives_the_numbers_of_the_undivided_one(where, make):
    whole, parts = make(), spread(make(), ON_DISK[where])
    meta = on_meta(parts)
    for name, act in ACTS.items():
        one, two = numbers(act(whole)), numbers(act(parts))
        assert one.keys() == two.keys() and one, name
        for each in one:
            np.testing.assert_array_equal(one[each], two[each], err_msg=f"{name}: {each}")
    assert on_meta(parts) == meta


def test_tied_weights_that_are_nowhere_are_refused_by_name(tmp_path):
    """As transformers loads them: the head is to be on the disk, and its weights, those of the embeddings, are not."""
    tied().save_pretrained(tmp_path / "model")
    places = dict.fromkeys(PARTS, "cpu") | {"lm_head": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk"
    ).eval()
    with pytest.raises(KeyError):
        model(IDS)
    others = [lambda model: S.cost(model, S.Dense(), 20), lambda model: S.measure(model, IDS), weights_hash]
    for act in (*ACTS.values(), *others):
        with pytest.raises(S.SinkscopeError, match=r"accelerate keeps lm_head.weight of LlamaForCausalLM elsewhere"):
            numbers(act(model))


def test_a_model_of_which_a_part_is_nowhere_is_refused_by_name():
    model = spread(build("llama"), ON_DISK["the head"])
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 96, bias=False, device="meta")
    with pytest.raises(S.SinkscopeError, match=r"holds no numbers \(model.layers.1.mlp.up_proj.weight\)"):
        S.measure(model, IDS)


# --- dtypes -----------------------------------------------------------------------------------------------------------


def with_a_layer_in(dtype, place, rest):
    """A model with one layer of another dtype, which takes and hands on what the rest does."""
    model = build("llama").to(rest)

    def convert(given, to):
        if isinstance(given, tuple):
            return tuple(convert(each, to) for each in given)
        return given.to(to) if isinstance(given, torch.Tensor) and given.dim() == 3 else given

    def before(module, args, kwargs):
        return convert(args, dtype), {name: convert(each, dtype) for name, each in kwargs.items()}

    layer = model.model.layers[place].to(dtype)
    layer.register_forward_pre_hook(before, with_kwargs=True)
    layer.register_forward_hook(lambda module, args, output: convert(output, rest))
    return model


def with_norms_in_float32():
    model = build("gemma3").to(torch.bfloat16)
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.float()
    return model


MIXED = {
    "a bfloat16 layer": lambda: with_a_layer_in(torch.bfloat16, 1, torch.float32),
    "the first layer in bfloat16": lambda: with_a_layer_in(torch.bfloat16, 0, torch.float32),
    "a float32 layer": lambda: with_a_layer_in(torch.float32, 1, torch.bfloat16),
    "norms in float32": with_norms_in_float32,
}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", MIXED)
def test_layers_of_several_dtypes(name, tmp_path):
    """Tolerances are those of bfloat16, 8 bits, on probabilities and on logits of about ten."""
    model = MIXED[name]()
    assert len({each.dtype for each in model.parameters()}) == 2
    mass = S.measure(model, IDS, [S.SinkMass(first=1)]).sink_mass.isel(sequence=0, sink=0)
    logits, expected = one_token_run(model, IDS, 4, 12, 6)
    with S.SinkCache(model, 4, 12) as cache:
        assert torch.equal(model.generate(IDS, **with_cache(model, cache), max_new_tokens=6, do_sample=False), expected)
        cache.save(tmp_path / "cache")
        with S.SinkCache.load(tmp_path / "cache", model) as loaded:
            both = [model(IDS[:, :1], **with_cache(model, each)).logits for each in (cache, loaded)]
            assert torch.equal(*both)
    losses = S.perplexity(model, IDS, [S.SinkWindow(4, 12)], progress=False, block=7).nll.values[0, 0, 1:]
    naive = torch.nn.functional.cross_entropy(logits[0, :39].float(), IDS[0, 1:], reduction="none")
    np.testing.assert_allclose(losses, naive, atol=0.3)
    model.set_attn_implementation("eager")
    maps = model(IDS, output_attentions=True).attentions
    expected = np.stack([each[0, :, :, 0].float() for each in maps])
    np.testing.assert_allclose(mass.transpose("layer", "head", "query"), expected, atol=1e-2)


@torch.no_grad()
def test_the_rotation_of_a_float32_model_with_a_coarser_layer_is_that_of_the_model():
    plain, mixed = build("llama"), with_a_layer_in(torch.bfloat16, 1, torch.float32)
    for one, other in zip(find_rotations(plain), find_rotations(mixed), strict=True):
        assert (one.low, one.high, one.interleaved) == (other.low, other.high, other.interleaved)
        torch.testing.assert_close(one.frequencies, other.frequencies, rtol=1e-6, atol=1e-9)
