"""What happens to a sink cache and its model between the first token and the last: turns, files, errors, the end."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from safetensors.torch import save_file

from sinkscope import SinkCache, SinkscopeError, capture
from sinkscope.hf.caches import with_cache
from tests.streaming.cached import greedy, run
from tests.streaming.one_token import one_token_run
from tests.support.zoo import build, inputs

SINKS, WINDOW, CLOSE = 4, 28, 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gptj", "bloom", "gemma3"])
def test_many_turns_on_one_cache_equal_one_text(family):
    model = build(family)
    ids = inputs(family, 1, 10)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        for turn, count in enumerate((3, 1, 50, 7)):
            expected = one_token_run(model, ids, SINKS, WINDOW, 15)[1]
            ids = greedy(model, ids, cache, 15)
            assert torch.equal(ids, expected)
            assert cache.seen == ids.shape[1] - 1
            ids = torch.cat([ids, inputs(family, 1, count, seed=turn)["input_ids"]], 1)


def test_a_turn_may_bring_only_its_new_tokens():
    model = build("llama")
    ids = inputs("llama", 1, 60)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        run(model, ids[:, :50], cache)
        new = model.generate(
            ids[:, 50:], attention_mask=torch.ones(1, 60), cache=cache, max_new_tokens=10, do_sample=False
        )
    assert torch.equal(new[0, 10:], one_token_run(model, ids, SINKS, WINDOW, 10)[1][0, 60:])


def test_embeddings_do_as_well_as_ids():
    model = build("llama")
    ids = inputs("llama", 1, 50)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache, torch.no_grad():
        mine = model(inputs_embeds=model.get_input_embeddings()(ids), cache=cache).logits
    assert (mine - one_token_run(model, ids, SINKS, WINDOW)[0][:, -1:]).abs().max() < CLOSE


@pytest.mark.slow
def test_reset_makes_it_new_also_for_another_batch_size():
    model = build("llama")
    ids = inputs("llama", 3, 50)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        greedy(model, ids[:1], cache, 20)
        for rows in (ids[:1], ids):
            cache.reset()
            assert (cache.seen, cache.held) == (0, 0)
            assert torch.equal(greedy(model, rows, cache, 20), one_token_run(model, rows, SINKS, WINDOW, 20)[1])


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [2, 20, 80])
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gemma3", "bloom"])
def test_a_saved_cache_goes_on_to_the_bit(family, tokens, tmp_path):
    model = build(family)
    ids = inputs(family, 2, tokens + 40)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        run(model, ids[:, :tokens], cache)
        path = cache.save(tmp_path / "cache.safetensors")
        with SinkCache.load(path, model) as loaded:
            assert (loaded.seen, loaded.held, loaded.nbytes) == (cache.seen, cache.held, cache.nbytes)
            for at in range(tokens, tokens + 40):
                assert torch.equal(run(model, ids[:, [at]], cache), run(model, ids[:, [at]], loaded))
    assert [file.name for file in tmp_path.iterdir()] == ["cache.safetensors"]


@pytest.mark.slow
def test_a_saved_padded_cache_goes_on_to_the_bit(tmp_path):
    model = build("llama")
    ids = inputs("llama", 2, 60)["input_ids"]
    mask = (torch.arange(60) >= torch.tensor([[0], [18]])).long()
    with SinkCache(model, SINKS, WINDOW) as cache:
        run(model, ids[:, :20], cache, attention_mask=mask[:, :20])
        with SinkCache.load(cache.save(tmp_path / "cache"), model) as loaded:
            for at in range(20, 60):
                given = {"attention_mask": mask[:, : at + 1]}
                assert torch.equal(run(model, ids[:, [at]], cache, **given), run(model, ids[:, [at]], loaded, **given))


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = build("llama")
    path = tmp_path / "cache.safetensors"
    with SinkCache(model, SINKS, WINDOW) as cache:
        with pytest.raises(SinkscopeError, match="nothing to save"):
            cache.save(path)
        run(model, inputs("llama", 1, 9)["input_ids"], cache)
        with pytest.raises(SinkscopeError, match="cannot write"):
            cache.save(tmp_path / "nowhere" / "cache.safetensors")
        own, text = tmp_path / "weights.safetensors", tmp_path / "thesis.txt"
        save_file({"weight": torch.ones(3)}, own)
        text.write_text("mine")
        for path_of_another in (own, text):
            before = path_of_another.read_bytes()
            with pytest.raises(SinkscopeError, match="was changed, or is not of sinkscope"):
                cache.save(path_of_another)
            assert path_of_another.read_bytes() == before
        path.touch()
        assert cache.save(cache.save(path)) == path
    whole = path.read_bytes()
    with pytest.raises(SinkscopeError, match="no cache at"):
        SinkCache.load(tmp_path / "other", model)
    with pytest.raises(SinkscopeError, match="dtype was float32 and now is bfloat16"):
        SinkCache.load(path, build("llama", dtype=torch.bfloat16))
    with pytest.raises(SinkscopeError, match="saved with a LlamaForCausalLM"):
        SinkCache.load(path, build("qwen2"))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SinkscopeError, match="torn"):
        SinkCache.load(path, model)
    path.write_bytes(whole[:-200] + bytes(100) + whole[-100:])
    with pytest.raises(SinkscopeError, match="damaged"):
        SinkCache.load(path, model)
    path.write_text("not a cache")
    with pytest.raises(SinkscopeError, match="damaged or torn"):
        SinkCache.load(path, model)


def test_the_model_is_left_as_it_was():
    model = build("llama")
    ids = inputs("llama", 1, 60)["input_ids"]
    before, state = model(ids).logits, dict(vars(model))
    cache = SinkCache(model, SINKS, WINDOW)
    other = SinkCache(model, SINKS, WINDOW)
    run(model, ids, cache)
    assert torch.equal(model(ids).logits, before)  # open caches do nothing to passes without them
    cache.close()
    cache.close()
    assert run(model, ids, other).shape[1] == 1
    other.close()
    assert vars(model) == state
    assert not model.base_model._forward_pre_hooks and not model.base_model._forward_pre_hooks_with_kwargs
    assert torch.equal(model(ids).logits, before)


@pytest.mark.slow
def test_a_forgotten_cache_leaves_its_model():
    model = build("llama")
    cache = SinkCache(model, SINKS, WINDOW)
    greedy(model, inputs("llama", 1, 50)["input_ids"], cache, 5)
    trace = weakref.ref(cache)
    del cache
    gc.collect()
    assert trace() is None
    assert not model.base_model._forward_pre_hooks and "prepare_inputs_for_generation" not in vars(model)


@pytest.mark.slow
def test_a_cache_does_not_keep_its_model():
    model = build("llama")
    cache = SinkCache(model, SINKS, WINDOW)
    run(model, inputs("llama", 1, 50)["input_ids"], cache)
    trace = weakref.ref(model)
    del model
    gc.collect()
    assert trace() is None
    with pytest.raises(SinkscopeError, match="its model is gone"):
        cache.save("anywhere")
    cache.close()


@pytest.mark.slow
def test_a_copied_model_is_free_of_the_cache():
    model = build("llama")
    ids = inputs("llama", 1, 50)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        twin = copy.deepcopy(model)
        with pytest.raises(SinkscopeError, match="made for another model"):
            run(twin, ids, cache)
        assert torch.equal(twin.generate(ids, max_new_tokens=5), model.generate(ids, max_new_tokens=5))
        with SinkCache(twin, SINKS, WINDOW) as second:
            assert torch.equal(run(twin, ids, second), run(model, ids, cache))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_an_interrupted_forward_pass_leaves_the_cache_as_it_was(family):
    model = build(family)
    ids = inputs(family, 1, 120)["input_ids"]
    logits, _ = one_token_run(model, ids, SINKS, WINDOW)

    def interrupt(*_):
        raise KeyboardInterrupt

    with SinkCache(model, SINKS, WINDOW) as cache:
        for at in range(120):
            if at % 7 == 3:
                layers = model.transformer.h if family == "bloom" else model.model.layers
                handle = layers[1].register_forward_pre_hook(interrupt)
                for count in (1, 30, 40):
                    with pytest.raises(KeyboardInterrupt):
                        run(model, ids[:, at : at + count], cache)
                handle.remove()
                assert cache.seen == at
            assert (run(model, ids[:, [at]], cache) - logits[:, [at]]).abs().max() < CLOSE


@pytest.mark.slow
def test_a_copied_cache_goes_its_own_way():
    model = build("llama")
    ids = inputs("llama", 1, 80)["input_ids"]
    with SinkCache(model, SINKS, WINDOW) as cache:
        run(model, ids[:, :50], cache)
        with copy.deepcopy(cache) as twin:
            for seed in range(2):
                answer = torch.cat([ids[:, :50], inputs("llama", 1, 30, seed=seed)["input_ids"]], 1)
                logits, _ = one_token_run(model, answer, SINKS, WINDOW)
                mine = run(model, answer[:, 50:], (cache, twin)[seed])
                assert (mine - logits[:, [79]]).abs().max() < CLOSE
        assert twin.is_closed and not cache.is_closed


@pytest.mark.slow
def test_repeated_and_selected_texts_go_on():
    model = build("llama")
    ids = inputs("llama", 2, 80)["input_ids"]
    logits, _ = one_token_run(model, ids, SINKS, WINDOW)
    with SinkCache(model, SINKS, WINDOW) as cache:
        run(model, ids[:, :50], cache)
        cache.batch_repeat_interleave(2)
        assert cache.batch_size == 4
        twice = run(model, ids[:, 50:51].repeat_interleave(2, 0), cache)
        assert (twice - logits[[0, 0, 1, 1], 50:51]).abs().max() < CLOSE
        cache.batch_select_indices(torch.tensor([3, 0]))
        for at in range(51, 80):
            assert (run(model, ids[[1, 0], at : at + 1], cache) - logits[[1, 0], at : at + 1]).abs().max() < CLOSE


@pytest.mark.slow
def test_inference_mode_and_gradients_can_take_turns():
    model = build("llama")
    ids = inputs("llama", 1, 60)["input_ids"]
    logits, _ = one_token_run(model, ids, SINKS, WINDOW)
    with SinkCache(model, SINKS, WINDOW) as cache:
        with torch.inference_mode():
            model(ids[:, :45], cache=cache)
        with_gradient = model(ids[:, 45:46], cache=cache).logits
        with_gradient.sum().backward()
        with torch.inference_mode():
            last = model(ids[:, 46:], cache=cache).logits
    assert (with_gradient - logits[:, [45]]).abs().max() < CLOSE
    assert (last - logits[:, [59]]).abs().max() < CLOSE


@pytest.mark.slow
def test_a_capture_can_watch_a_cached_decoder():
    model = build("llama")
    ids = inputs("llama", 1, 60)["input_ids"]
    logits, _ = one_token_run(model, ids, SINKS, WINDOW)
    with SinkCache(model, SINKS, WINDOW) as cache, capture(model) as scope:
        assert (run(model, ids[:, :50], cache) - logits[:, [49]]).abs().max() < CLOSE
        for at in range(50, 60):
            assert (run(model, ids[:, [at]], cache) - logits[:, [at]]).abs().max() < CLOSE
    assert scope.record.sizes["layer"] == 2


def test_it_says_how_full_it_is():
    model = build("llama")
    with SinkCache(model, SINKS, WINDOW) as cache:
        assert (cache.size, cache.held, cache.seen, cache.batch_size) == (32, 0, 0, -1)
        run(model, inputs("llama", 2, 40)["input_ids"], cache)
        assert (cache.held, cache.seen, cache.batch_size) == (32, 40, 2)
        assert repr(cache) == "SinkCache(LlamaForCausalLM, sinks=4, window=28; 32 of 32 tokens held, 40 seen)"
    assert cache.is_closed and "closed" in repr(cache)


@pytest.mark.parametrize(
    "places",
    [3 * torch.arange(12), torch.cat([torch.arange(6), torch.arange(6)]), torch.arange(12).flip(0)],
    ids=["apart", "packed", "backwards"],
)
def test_positions_that_do_not_count_on_are_refused(places):
    model, ids = build("llama"), inputs("llama", tokens=12)["input_ids"]
    with torch.no_grad(), SinkCache(model, 2, 30) as cache:
        with pytest.raises(SinkscopeError, match="position_ids do not count on by one, and a SinkCache"):
            model(ids, position_ids=places.expand(2, -1), **with_cache(model, cache))
        logits = model(ids, position_ids=torch.arange(12).expand(2, -1), **with_cache(model, cache)).logits
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=1e-4)
