"""Small language models from scratch: trained with the normaliser they are told, measured on text they never saw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr

from sinkscope import attached, lab, open_record, save_record
from sinkscope.errors import SinkscopeError
from sinkscope.lab.decoder import Sizes
from sinkscope.lab.language import LanguageRun, LanguageSchedule, training_attention
from sinkscope.normalisers import ReLU, Sigmoid, Softmax, Softmax1
from tests.support.training_records import TEXT

LONG = TEXT * 6
TINY = dict(
    layers=2, heads=2, width=16, length=20, batch=2, every=2, evaluated=3, cache_size=6, sinks=(0, 1, 2), text=LONG,
    learning_rate=1e-2, progress=False,
)  # fmt: skip


def trained(folder, arms=("softmax", "softmax1", "sink token"), seeds=0, steps=3, **options) -> xr.Dataset:
    return lab.language_model(arms, seeds, steps, folder=folder, **TINY | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def record(folder):
    return trained(folder)


@pytest.fixture
def runs(monkeypatch) -> list[LanguageRun]:
    """Those that are evaluated, with their trained models as `found`."""
    seen, load = [], LanguageRun.trained

    def noted(self, found):
        seen.append((self, load(self, found)))
        return seen[-1][1]

    monkeypatch.setattr(LanguageRun, "trained", noted)
    return seen


def held_out(record: xr.Dataset) -> np.ndarray:
    """The texts [sequence, token] that should have been held out: spread over the end of the text."""
    characters = record.attrs["characters"]
    ids = np.array([characters.index(character) for character in LONG])
    held = ids[len(ids) - max(int(0.05 * len(ids)), 20) :]
    starts = np.linspace(0, len(held) - 20, min(3, len(held) // 20)).astype(int)
    return np.stack([held[start : start + 20] for start in starts])


def weights_of(scores: torch.Tensor, normaliser) -> torch.Tensor:
    """Softmax, with a one in the denominator for softmax1; scores [head, query, key]."""
    exponentials = scores.exp().masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), 0)
    return exponentials / (exponentials.sum(-1, keepdim=True) + isinstance(normaliser, Softmax1))


def maps_by_hand(model, normaliser, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [token, next] and attention [layer, head, query, key] of a Llama, written out in float64."""
    model = model.double()
    base, dim = model.model, model.config.hidden_size // model.config.num_attention_heads
    hidden, maps = base.embed_tokens(ids), []
    half = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = torch.arange(len(ids), dtype=torch.float64)[:, None] * 10000.0**-half
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def turned(states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, -1)
        return states * cos + torch.cat([-second, first], -1) * sin

    for layer in base.layers:
        own, states = layer.self_attn, layer.input_layernorm(hidden)
        query, key, value = (
            projection(states).view(len(ids), -1, dim).transpose(0, 1)
            for projection in (own.q_proj, own.k_proj, own.v_proj)
        )
        weights = weights_of(turned(query) @ turned(key).mT / math.sqrt(dim), normaliser)
        maps.append(weights)
        hidden = hidden + own.o_proj((weights @ value).transpose(0, 1).reshape(len(ids), -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(base.norm(hidden)), torch.stack(maps)


@pytest.mark.slow
def test_masses_and_dense_losses_are_those_of_the_trained_models_on_the_held_out_texts(folder, runs):
    record = trained(folder)
    texts = held_out(record)
    assert [run.arm.name for run, _ in runs] == ["softmax", "softmax1", "sink token"]
    with torch.no_grad():
        for run, model in runs:
            own = record.sel(arm=run.arm.name, seed=0)
            sinks = int(run.arm.has_sink_token)
            for number, text in enumerate(texts):
                ids = torch.tensor([run.sink_token] * sinks + text.tolist())
                logits, maps = maps_by_hand(model, run.arm.normaliser, ids)
                mass = maps[:, :, 1:, 0].mean(-1)
                np.testing.assert_allclose(own["sink_mass"].sel(sequence=number), mass, rtol=1e-4, atol=1e-6)
                if run.arm.name == "softmax1":
                    missing = 1 - maps[:, :, 1:].sum(-1).mean(-1)
                    np.testing.assert_allclose(own["virtual_mass"].sel(sequence=number), missing, rtol=1e-3)
                losses = -logits.log_softmax(-1)[sinks:-1].gather(1, torch.tensor(text)[1:, None])[:, 0]
                found = own["nll"].sel(policy="dense", sequence=number)
                np.testing.assert_allclose(found[1:], losses, rtol=1e-4)  # float32 against float64
                assert np.isnan(found[0])
            null = np.mean([1 / (query + 1) for query in range(1, 20 + sinks)])
            assert float(own["sink_null"]) == pytest.approx(null)


@pytest.mark.slow
def test_every_policy_scores_the_same_tokens_of_the_text_in_every_arm(record):
    scored = record["nll"].notnull()
    assert bool((scored == scored.isel(arm=0, policy=0)).all())
    assert record["policy"].values.tolist() == ["dense", "window 6", "sinks 1+5", "sinks 2+4"]
    early, late = record["nll"].sel(token=slice(1, 6)), record["nll"].sel(token=slice(10, None))
    same = early.sel(arm=["softmax", "softmax1"])
    np.testing.assert_allclose(same, same.sel(policy=["dense"] * 4), atol=1e-5)  # nothing evicted yet
    assert float(abs(late - late.sel(policy="dense")).max()) > 1e-4


def untrained_run(normaliser) -> LanguageRun:
    schedule = LanguageSchedule(steps=1, batch=2, learning_rate=1e-3, weight_decay=0.0, every=1)
    return LanguageRun(
        np.arange(50) % 11, "", Sizes(12, 20, 2, 2, 16), schedule, lab.Arm("an arm", normaliser), 0, "cpu"
    )


@pytest.mark.parametrize("normaliser", [Softmax(), Softmax1(), Sigmoid(), ReLU()], ids=repr)
def test_training_attention_is_that_of_a_scope_gradients_included(normaliser):
    run = untrained_run(normaliser)
    ids = torch.randint(11, (2, 20), generator=torch.Generator().manual_seed(0))

    def losses(context) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = run.untrained()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter *= 8  # uneven attention
        with context(model):
            loss = model(ids).logits.float().log_softmax(-1)[:, :, 0].square().mean()
        loss.backward()
        return loss.detach(), [parameter.grad for parameter in model.parameters()]

    loss, gradients = losses(lambda model: training_attention(model, normaliser))
    expected, right = losses(lambda model: attached(model, normaliser=normaliser))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(gradients, right, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_training_attention_leaves_the_model_as_it_was_also_after_an_error():
    model = untrained_run(Softmax1()).untrained()
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), training_attention(model, Softmax1()):
        assert model.config._attn_implementation != before
        _ = 1 / 0
    assert model.config._attn_implementation == before


@pytest.mark.slow
def test_the_end_of_the_text_is_never_learned_from(folder, monkeypatch):
    read, passages = [], LanguageRun._passages

    def noted(self):
        for each in passages(self):
            read.append(each)
            yield each

    monkeypatch.setattr(LanguageRun, "_passages", noted)
    marked = LONG[: -len(LONG) // 20] + "#" * (len(LONG) // 20 + 1)
    record = trained(folder, arms="softmax", steps=40, text=marked, batch=32)
    mark = record.attrs["characters"].index("#")
    assert sum(map(torch.numel, read)) == 40 * 32 * 20
    assert sum(int((each == mark).sum()) for each in read) <= 40 * 32  # the one mark before the held-out end, at most


@pytest.mark.slow
def test_a_seed_gives_the_same_model_and_arms_of_one_seed_read_the_same_passages(tmp_path, record):
    again = trained(tmp_path)
    for name in ("train_loss", "nll", "sink_mass"):
        np.testing.assert_allclose(again[name], record[name], rtol=1e-5)  # several threads sum in any order
    other = trained(tmp_path, arms="softmax", seeds=1)
    assert not np.array_equal(other["train_loss"].isel(arm=0), record["train_loss"].isel(arm=0))


@pytest.mark.slow
def test_losses_are_means_over_the_steps_up_to_each_recorded_one(folder, record, tmp_path):
    each = trained(tmp_path, arms="softmax", every=1)["train_loss"].values.ravel()
    assert record["step"].values.tolist() == [2, 3]
    np.testing.assert_allclose(
        record["train_loss"].sel(arm="softmax").values.ravel(), [each[:2].mean(), each[2]], rtol=1e-6
    )


@pytest.mark.slow
def test_a_model_learns_the_text(tmp_path):
    record = trained(tmp_path, arms="softmax", steps=60, batch=8, every=10)
    loss = record["train_loss"].values.ravel()
    frequencies = np.array([LONG.count(character) for character in set(LONG)]) / len(LONG)
    alone = -(frequencies * np.log(frequencies)).sum()  # of knowing how frequent characters are
    assert loss[-1] < alone < loss[0]


@pytest.mark.slow
def test_trained_weights_are_kept_and_other_caches_need_no_training(folder, record, monkeypatch):
    monkeypatch.setattr(LanguageRun, "train", None)
    again = trained(folder, cache_size=8, sinks=(0, 2))
    assert again["policy"].values.tolist() == ["dense", "window 8", "sinks 2+6"]
    np.testing.assert_allclose(again["nll"].sel(policy="dense"), record["nll"].sel(policy="dense"), rtol=1e-5)


@pytest.mark.slow
def test_the_record_is_kept_in_a_file(tmp_path, record):
    save_record(record, tmp_path / "record.nc")
    opened = open_record(tmp_path / "record.nc")
    xr.testing.assert_identical(opened.drop_attrs(), record.drop_attrs())
    assert lab.language_verdict(opened) == lab.language_verdict(record)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ["learned sink"]}, "trains logits that Llama does not have"),
        ({"arms": ["gated"]}, "trains gates that Llama does not have"),
        ({"arms": ["nonsense"]}, "'nonsense' is no arm"),
        ({"steps": 0}, "steps=0"),
        ({"seeds": []}, "no seeds were given"),
        ({"sinks": (1, 4)}, "sinks=[1, 4] compare nothing"),
        ({"sinks": (0,)}, "sinks=[0] compare nothing"),
        ({"sinks": (0, 6)}, "sinks=6 leave no window in cache_size=6"),
        ({"cache_size": 18}, "evict nothing from cache_size=18"),
        ({"text": "too short"}, "the text has 9 characters"),
        ({"text": "\t"}, "nothing but white space"),
        ({"width": 18}, "width=18 cannot be shared among heads=2: give a multiple of 4"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, options, message):
    with pytest.raises(SinkscopeError) as refused:
        trained(**{"folder": tmp_path / "runs"} | options)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()
