"""Training on Bigram-Backcopy: the same by seed, kept on disk, refused where it cannot be; and it learns to copy."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
import xarray as xr

from sinkscope import lab, open_record, save_record
from sinkscope.errors import SinkscopeError
from sinkscope.lab.bigram import Backcopy, BackcopyRun
from sinkscope.lab.runs import Text
from sinkscope.normalisers import Normaliser, Softmax1
from tests.support.training_records import SMALL, TEXT


def trained(folder, arms=("softmax", "sigmoid"), seeds=(0, 1), steps=5, **options) -> xr.Dataset:
    return lab.bigram_backcopy(arms, seeds, steps, folder=folder, **SMALL | options)


@pytest.fixture
def runs(monkeypatch) -> list[str]:
    """Names of the runs that are trained from now on."""
    names, train = [], BackcopyRun.train

    def noted(self, *given):
        names.append(self.name)
        return train(self, *given)

    monkeypatch.setattr(BackcopyRun, "train", noted)
    return names


@pytest.mark.slow
def test_the_record_has_every_arm_seed_and_step_and_what_is_needed_to_repeat_it(tmp_path):
    record = trained(tmp_path, steps=5, layers=2, heads=2)
    assert record["loss"].dims == ("arm", "seed", "step", "tokens")
    assert record["bos_mass"].dims == ("arm", "seed", "step", "layer", "head", "tokens")
    assert record["bos_mass"].shape == (2, 2, 4, 2, 2, 3)
    assert record["step"].values.tolist() == [0, 2, 4, 5]
    assert not any(bool(values.isnull().any()) for values in record.data_vars.values())
    for name in ("text_sha256", "triggers", "seeds", "steps", "batch", "learning_rate", "torch", "sinkscope", "date"):
        assert record.attrs[name] not in (None, ""), name
    save_record(record, tmp_path / "record.nc")
    xr.testing.assert_identical(open_record(tmp_path / "record.nc").drop_attrs(), record.drop_attrs())


@pytest.mark.slow
def test_a_seed_gives_the_same_numbers_and_another_gives_others(tmp_path):
    first, again = trained(tmp_path / "one"), trained(tmp_path / "two")
    for name in ("loss", "bos_mass", "value_norm"):
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name].sel(seed=0), first[name].sel(seed=1))


def test_the_caller_s_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trained(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_arms_begin_alike_and_part_as_they_are_trained(tmp_path):
    record = trained(tmp_path, arms=("softmax", "softmax1"))
    hidden = record["value_norm"]
    np.testing.assert_array_equal(hidden.sel(arm="softmax", step=0), hidden.sel(arm="softmax1", step=0))
    assert not np.array_equal(hidden.sel(arm="softmax", step=5), hidden.sel(arm="softmax1", step=5))


@pytest.mark.slow
def test_runs_are_measured_at_the_same_steps_whatever_lies_between(tmp_path):
    close, far = trained(tmp_path, every=1), trained(tmp_path, every=5)
    np.testing.assert_array_equal(close["loss"].sel(step=[0, 5]), far["loss"].sel(step=[0, 5]))


@pytest.mark.slow
def test_a_finished_run_is_not_run_again_and_only_what_is_new_is(tmp_path, runs):
    first = trained(tmp_path)
    assert sorted(runs) == ["sigmoid, seed 0", "sigmoid, seed 1", "softmax, seed 0", "softmax, seed 1"]
    runs.clear()
    again = trained(tmp_path)
    assert runs == []
    xr.testing.assert_identical(again.drop_attrs(), first.drop_attrs())
    trained(tmp_path, arms=("softmax", "relu"), seeds=(1, 2))
    assert sorted(runs) == ["relu, seed 1", "relu, seed 2", "softmax, seed 2"]


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 6}, {"layers": 2}, {"heads": 2}, {"width": 18}, {"length": 11}, {"batch": 9}, {"every": 3},
        {"learning_rate": 1e-3}, {"weight_decay": 0.0}, {"evaluated": 9}, {"triggers": "a"}, {"text": TEXT + "x"},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_other_settings_are_another_run(tmp_path, runs, changed):
    trained(tmp_path, arms="softmax", seeds=0)
    trained(tmp_path, arms="softmax", seeds=0, **changed)
    assert runs == ["softmax, seed 0"] * 2 and len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_damaged_file_is_refused_before_anything_runs(tmp_path, runs):
    trained(tmp_path, arms="softmax", seeds=0)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    place = len(whole) - 40  # within the numbers
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    runs.clear()
    with pytest.raises(SinkscopeError, match=r"damaged.*delete it to train this run again"):
        trained(tmp_path, seeds=0)
    path.write_bytes(whole[:100])
    with pytest.raises(SinkscopeError, match="damaged or torn"):
        trained(tmp_path, seeds=0)
    assert runs == []


def test_a_file_under_the_name_of_another_run_is_refused(tmp_path):
    trained(tmp_path, arms="softmax", seeds=0)
    (path,) = tmp_path.glob("*.safetensors")
    trained(tmp_path, arms="softmax", seeds=1)
    (other,) = set(tmp_path.glob("*.safetensors")) - {path}
    path.replace(other)
    with pytest.raises(SinkscopeError, match="of other settings than its name says"):
        trained(tmp_path, arms="softmax", seeds=1)


def test_nothing_half_written_is_left_behind(tmp_path, monkeypatch):
    def interrupted(self, advance, way):
        raise KeyboardInterrupt

    trained(tmp_path, arms="softmax", seeds=0)
    monkeypatch.setattr(BackcopyRun, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_workers_find_what_this_process_does(tmp_path):
    here = trained(tmp_path / "here", seeds=0)
    there = trained(tmp_path / "there", seeds=0, n_jobs=2)
    np.testing.assert_allclose(there["loss"], here["loss"], rtol=1e-4)  # sums in another order with other threads
    assert len(list((tmp_path / "there").glob("*.safetensors"))) == 2


def test_an_arm_of_one_s_own_is_trained_with_its_normaliser(tmp_path):
    record = trained(tmp_path, arms=["softmax1", lab.Arm("mine", Softmax1())], seeds=0)
    np.testing.assert_array_equal(record["loss"].sel(arm="mine"), record["loss"].sel(arm="softmax1"))


@pytest.mark.slow
def test_a_model_learns_to_copy_what_no_bigram_could_tell(tmp_path):
    record = lab.bigram_backcopy(
        "softmax", 0, 200, width=32, length=12, batch=32, learning_rate=1e-2, text=TEXT, triggers="at", every=200,
        folder=tmp_path, progress=False,
    )  # fmt: skip
    task = Backcopy.of(Text("a text", TEXT), "at")
    ids = task.sample(4000, 12, torch.Generator().manual_seed(5))
    following = defaultdict(Counter)
    for now, after in zip(ids[:, 1:-1].flatten().tolist(), ids[:, 2:].flatten().tolist(), strict=True):
        if task.characters[now] in "at":
            following[now][after] += 1
    total = sum(sum(counts.values()) for counts in following.values())
    alone = -sum(
        count / total * math.log(count / sum(counts.values()))
        for counts in following.values()
        for count in counts.values()
    )  # the best that can be done from the trigger alone
    first, last = (record["loss"].isel(arm=0, seed=0, step=step).sel(tokens="trigger").item() for step in (0, -1))
    assert last < 0.5 * alone < alone < first
    best = float(record["best_loss"].sel(tokens="non-trigger"))
    assert best < record["loss"].isel(arm=0, seed=0, step=-1).sel(tokens="non-trigger").item() < best + 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"seeds": []}, "no seeds were given"),
        ({"seeds": [-1]}, "seed=-1"),
        ({"arms": ["softmax", "hardmax"]}, "'hardmax' is no arm; give any of softmax, softmax1"),
        ({"arms": []}, "no arm was given"),
        ({"arms": [lab.Arm("softmax"), lab.Arm("softmax", Softmax1())]}, "two of one name"),
        ({"arms": lab.Arm("own", Softmax1)}, "the normaliser of the arm 'own' is <class"),
        ({"layers": 0}, "layers=0"),
        ({"layers": 4}, "layers=4"),
        ({"heads": 3}, "width=16 cannot be shared among heads=3"),
        ({"text": " \n"}, "nothing but white space"),
        ({"source": "a.txt"}, "Both source and text"),
        ({"text": None, "source": "/no/such.txt"}, "/no/such.txt"),
        ({"length": 1}, "length=1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": 1e30}, "went astray: its loss at step"),
        ({"device": "nowhere"}, "device='nowhere' cannot be used here"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, options, message):
    with pytest.raises(SinkscopeError) as refused:
        trained(**{"folder": tmp_path / "runs"} | options)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path, runs):
    (tmp_path / "file").touch()
    with pytest.raises(SinkscopeError, match="cannot be made"):
        trained(tmp_path / "file" / "runs")
    assert runs == []


def test_a_normaliser_with_another_constant_is_trained_anew(tmp_path):
    def own(constant):
        class Power(Normaliser):
            power = constant

            def weights(self, scores):
                return scores.softmax(-1) ** self.power

        return lab.Arm("own", Power())

    kept = [trained(tmp_path, [own(power)], 0) for power in (1, 2)]
    np.testing.assert_array_equal(kept[1].loss, trained(None, [own(2)], 0).loss)
    assert not np.array_equal(kept[0].loss, kept[1].loss)
