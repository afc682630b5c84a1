"""A grid says in one sentence what is wrong with it, and holds each level once."""

from __future__ import annotations

import itertools

import pytest
import torch

import sinkscope
from sinkscope import TOVA, Dense, Grid, SinkWindow, Window
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.cells import Measure, Perplexity
from sinkscope.texts import read_tokens
from tests.support.tokenizers import byte_level

IDS = {"mine": torch.arange(90)}


def grid(**axes):
    return Grid.of({"texts": IDS, **axes})


def test_words_make_policies_at_the_levels_they_depend_on_and_no_others():
    made = grid(policies=["dense", "window", "sinks"], sinks=[1, 4], cache_sizes=[32, 64]).ways
    assert made == [
        Dense(), Window(32), Window(64), SinkWindow(1, 31), SinkWindow(4, 28), SinkWindow(1, 63), SinkWindow(4, 60),
    ]  # fmt: skip


def test_policies_by_class_name_are_taken_as_they_are():
    made = grid(policies=["TOVA", {"SinkWindow": {"sinks": 2, "window": 9, "values": "zeroed"}}, TOVA(8)]).ways
    assert made == [TOVA(), SinkWindow(2, 9, values="zeroed"), TOVA(8)]


def test_options_of_experiments_and_names_of_probes():
    done = grid(experiments={"measure": {"probes": ["Entropy", {"SinkMass": {"first": 2}}]}, "perplexity": None}).done
    assert done == {"measure": Measure((sinkscope.Entropy(), sinkscope.SinkMass(2))), "perplexity": Perplexity()}


def test_a_text_with_several_starts_is_several_texts(tmp_path):
    (tmp_path / "book.txt").write_text("word " * 100)
    made = Grid.of({"texts": [{"source": str(tmp_path / "book.txt"), "tokens": 8, "start": [0, 16]}]}).segments
    assert list(made) == ["book.txt [0:8]", "book.txt [16:24]"] and [each.start for each in made.values()] == [0, 16]


def test_the_same_grid_in_yaml(tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "models: {small: {source: some/model, dtype: bfloat16}}\n"
        "experiments: {perplexity: {samples: 16}}\n"
        "policies: [dense, recompute, {TOVA: {budget: 32}}]\nseeds: [0, 1]\n"
    )
    read = Grid.of(tmp_path / "grid.yaml")
    written = Grid(
        models={"small": {"source": "some/model", "dtype": "bfloat16"}}, experiments={"perplexity": {"samples": 16}},
        policies=["dense", "recompute", TOVA(32)], seeds=[0, 1],
    )  # fmt: skip
    for name in ("sources", "segments", "done", "ways", "counts", "draws"):
        assert getattr(read, name) == getattr(written, name)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (dict(polices=["dense"]), "'polices' is no part of a grid; did you mean 'policies'"),
        (dict(policies=["windw"]), "'windw' is no policy; did you mean 'window'"),
        (dict(policies=[]), r"policies=\[\] is empty"),
        (dict(policies=["dense", "dense"]), "the policy 'dense' is given twice"),
        (dict(policies=["dense", {"Dense": None}]), "the policy 'dense' is given twice"),
        (dict(policies=[{"Window": {}}]), "Window needs size"),
        (dict(policies=[{"Window": {"sise": 3}}]), "'sise' is no argument of Window; did you mean 'size'"),
        (dict(policies=[{"Window": 3}]), "Window is given 3; give its arguments by name"),
        (dict(policies=[{"Window": {"size": 0}}]), r"Window\(size=0\) cannot be kept"),
        (dict(policies=[7]), "7 is no policy"),
        (dict(sinks=[4, 4]), r"sinks=\[4, 4\] has a level twice"),
        (dict(sinks=[]), r"sinks=\[\] is empty"),
        (dict(sinks=["four"]), "sinks='four' is not a whole number"),
        (dict(sinks=[64], cache_sizes=[64]), "64 sinks leave no window in a cache of 64"),
        (dict(policies=["dense"], cache_sizes=[8, 16]), r"cache_sizes=\[8, 16\] are without effect"),
        (dict(policies=["dense", "window"], sinks=[1, 4]), r"sinks=\[1, 4\] are without effect"),
        (dict(seeds=[0, 1]), r"seeds=\[0, 1\] are without effect"),
        (dict(policies=["recompute"], seeds=[0, 1]), r"seeds=\[0, 1\] are without effect"),
        (dict(experiments="interventions", policies=["window"]), "the policies of this grid are without effect"),
        (dict(experiments="interventions", sinks=0), "sinks=0 leave interventions nothing to take away"),
        (dict(experiments="perplexty"), "'perplexty' is no experiment; did you mean 'perplexity'"),
        (dict(experiments=[]), r"experiments=\[\] is empty"),
        (dict(experiments=["recall", "recall"]), "the experiment 'recall' is given twice"),
        (dict(experiments={"perplexity": {"blok": 3}}), "'blok' is no argument of perplexity; did you mean 'block'"),
        (dict(experiments={"recall": {"passage": -1}}), "passage=-1 is not a whole number of 2 or more"),
        (dict(experiments={"measure": {"probes": ["Entropi"]}}), "'Entropi' is no probe; did you mean 'Entropy'"),
        (dict(experiments={"measure": {"probes": ["Entropy"] * 2}}), "names one probe twice"),
        (dict(models=[]), r"models=\[\] is empty"),
        (dict(models=["demo", "demo"]), "the model 'demo' is given twice"),
        (dict(models=[3]), "3 is no model"),
        (dict(models=[{"source": "a", "dtipe": "float32"}]), "'dtipe' is no part of a model; did you mean 'dtype'"),
        (dict(models=[{"source": "a", "trust_remote_code": True}]), "'trust_remote_code' is no part of a model"),
        (dict(models={"source": "a"}), "put this one in brackets"),
        (dict(texts=[{"source": "a", "token": 3}]), "'token' is no part of a text; did you mean 'tokens'"),
        (dict(texts=[{"tokens": 3}]), "says not what to read"),
        (dict(texts=[{"source": "a", "start": [-1]}]), "start=-1 is not a whole number"),
        (dict(texts=torch.arange(9)), "token ids need a name"),
        (dict(tokens=1), "tokens=1 is not a whole number of 2 or more"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence(axes, words):
    with pytest.raises(SinkscopeError, match=words) as refused:
        grid(**axes)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"models: [demo]\nmodels: [other]\n", "line 2 cannot be read as YAML .*'models' twice"),
        (b"a: &x [1]\nb: *x\n", "line 2 cannot be read as YAML .*alias"),
        (b"models: [demo", "cannot be read as YAML"),
        (b"- demo\n", "holds no grid"),
        (b"", "holds no grid"),
        (b"models: \xff", "cannot be read"),
        (b"models: !!python/object:os.system x", "cannot be read as YAML"),
        (b"[" * 100_000, "cannot be read"),
        (b"#" * 2**21, r"^/\S+ is longer than"),
    ],
)
def test_a_file_that_holds_no_grid_is_refused(tmp_path, text, words):
    (tmp_path / "grid.yaml").write_bytes(text)
    with pytest.raises(SinkscopeError, match=words) as refused:
        Grid.of(tmp_path / "grid.yaml")
    assert "\n" not in str(refused.value)


def test_what_is_no_grid_is_refused(tmp_path):
    with pytest.raises(SinkscopeError, match="cannot be read"):
        Grid.of(tmp_path / "none.yaml")
    with pytest.raises(SinkscopeError, match="a int is no grid"):
        Grid.of(3)


def test_a_text_can_be_segments_from_all_over_it(tmp_path):
    (tmp_path / "book.txt").write_text(" ".join(f"word{number}" for number in range(200)))
    file, tokenizer = str(tmp_path / "book.txt"), byte_level("$A")
    ((name, part),) = Grid.of({"texts": [{"source": file, "tokens": 8, "segments": 5}]}).segments.items()
    assert name == "book.txt, 5 spaced segments of 8"
    whole = read_tokens(tokenizer, file, 10_000)[0]
    for row, start in zip(part.read(tokenizer), range(0, len(whole), len(whole) // 5), strict=False):
        assert any(torch.equal(row, whole[at : at + 8]) for at in (start, start + 1, start + 2, start + 3, start + 4))
    with pytest.raises(SinkscopeError, match="leave start and sequences out beside them"):
        Grid.of({"texts": [{"source": file, "segments": 5, "start": 3}]})


def test_an_axis_without_end_is_refused():
    with pytest.raises(SinkscopeError, match=r"sinks=count\(\d+\) has more than 100,000 entries"):
        grid(sinks=itertools.count())
