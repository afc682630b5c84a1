"""The examples of the README and of the site run, and the site has every name, figure and way that it should."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope
from sinkscope import StaticPolicy, figures, lab, probes

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = sorted(
    path for path in [*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md"] if not {"made", "_build"} & {*path.parts}
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"# Not run by the tests: (needs .*)\.\n")
LOAD = sinkscope.load
OF_LAYERS = {"maps", "own_pass", "figure_2", "why_softmax", "records", "mean_maps"}  # name layers of the demo model
OF_SINKS = {"sink_tags"}  # random weights have no sink to draw
DRAWN = sorted((DOCS / "gallery").glob("*.py"))


def blocks(path: Path) -> list[str]:
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def run(path: Path, names: dict[str, object]) -> dict[str, object]:
    """The names of a page after its blocks, in order, but for those that say what they need."""
    for block in blocks(path):
        if not NOT_RUN.match(block):
            exec(compile(block, str(path), "exec"), names)
    return names


@cache
def words() -> object:
    return sinkscope.load()[1]


def small(name: str) -> tuple[LlamaForCausalLM, object]:
    """A model with random weights and as many heads as the demo model, in layers enough, and the demo's tokenizer."""
    layers = 19 if name in OF_LAYERS else 2
    shapes = dict(hidden_size=36, intermediate_size=48, num_hidden_layers=layers, head_dim=4, num_attention_heads=9)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, num_key_value_heads=3, bos_token_id=1, eos_token_id=2, **shapes)
    return LlamaForCausalLM(config).eval(), words()


@pytest.fixture
def shelf(tmp_path, monkeypatch, path, one_format) -> Path:
    """A folder with what pages name: a book, a grid, a model; and `load` gives a small model, whatever it is asked."""
    model, tokenizer = small(path.stem)  # before `load` is another
    monkeypatch.chdir(tmp_path)
    loads: Callable = lambda source=None, **options: (model, tokenizer)  # noqa: E731
    monkeypatch.setattr(sinkscope, "load", loads)
    (tmp_path / "book.txt").write_text(2 * sinkscope.read_text("demo:ferry"), encoding="utf-8")
    if "grid.yaml" in (said := path.read_text(encoding="utf-8")) or "small" in said:
        model.save_pretrained(tmp_path / "small")
        tokenizer.save_pretrained(tmp_path / "small")
    (tmp_path / "grid.yaml").write_text(
        "models: [small]\ntexts: [{source: book.txt, tokens: 96}]\npolicies: [dense, window]\ncache_sizes: 32\n"
    )
    return tmp_path


@pytest.mark.demo
@pytest.mark.slow
def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(README, {})
    assert 0.25 < float(names["mass"].mean()) < 0.45  # about a third, as the README says
    assert (tmp_path / "mass_by_layer.pdf").stat().st_size > 5000
    table = sinkscope.ppl_table(names["curve"], baseline="dense").set_index("policy")
    assert table.ratio["window 128"] > 1.5 and table.ratio["sinks 4+124"] < 1.2  # collapses, recovers


@pytest.mark.demo
@pytest.mark.slow
@pytest.mark.parametrize("path", [each for each in PAGES if blocks(each)], ids=lambda path: path.stem)
def test_the_examples_of_a_page_run(path, shelf):
    names: dict[str, object] = {}
    if path.parent in (DOCS, ROOT):  # pages of reference begin in the middle
        model, tokenizer = sinkscope.load()
        names = {"sinkscope": sinkscope, "model": model, "tokenizer": tokenizer, "torch": torch}
        names |= {"ids": sinkscope.read_tokens(tokenizer, limit=2048), "dataclass": dataclass}
        names |= {"StaticPolicy": StaticPolicy, "text": "In the beginning God created the heaven and the earth. " * 8}
    run(path, names)


@pytest.mark.demo
@pytest.mark.slow
@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_a_script_of_the_gallery_draws_the_figure_of_its_name(path, shelf, monkeypatch):
    if path.stem in OF_SINKS:
        monkeypatch.setattr(sinkscope, "load", LOAD)
    (shelf / "assets").symlink_to(ROOT / "assets")
    figure = runpy.run_path(str(path))["figure"]
    figure.savefig("figure.png")
    assert (shelf / "figure.png").stat().st_size > 5000 and f"sinkscope.figures.{path.stem}(" in path.read_text()


def test_the_gallery_has_every_figure():
    made = {*figures.__all__} - {"figure", "marks", "matplotlib_figure", "plotly_figure"}
    assert {path.stem for path in DRAWN} == made
    families = ast.parse((DOCS / "made.py").read_text(encoding="utf-8"))
    shown = {each.value for each in ast.walk(families) if isinstance(each, ast.Constant)}
    assert made <= shown


def test_what_is_not_run_says_what_it_needs_and_names_what_there_is():
    found = {}
    for path in PAGES:
        for block in blocks(path):
            if reason := NOT_RUN.match(block):
                found.setdefault(path.stem, []).append(reason[1])
            for name in re.findall(r"\bsinkscope\.(\w+)", block):
                assert hasattr(sinkscope, name), (path.name, name)
    assert found == {
        "big_models": ["needs several GPUs and a large model"],
        "gpus": ["needs a GPU", "needs several GPUs and a large model"],
        "cluster": ["needs a Dask scheduler"],
        "sweeps": ["needs a Dask scheduler", "needs Ray", "needs a Slurm cluster"],
    }


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").split()) < 900


def test_the_reference_has_every_public_name_once():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("api_*.md"))
    listed = re.findall(r"^\.\. auto(?:function|class|data|exception):: (\w+)", text, re.MULTILINE)
    public = [*sinkscope.__all__, *figures.__all__, *lab.__all__]
    wanted = [name for name in public if name not in ("__version__", "figures", "lab", "marks")]
    assert sorted(listed) == sorted(wanted), "docs/reference/api_*.md: a name is missing, or twice"


TASKS = {
    "sink rate of a directory model": 'sinkscope.load("path/to/model")',
    "Figure 2": "sinkscope.figures.mean_maps(",
    "SinkCache in generate()": "with sinkscope.SinkCache(model",
    "a paper figure as PDF": '.savefig("mass_by_layer.pdf")',
    "a policy of one's own": "(sinkscope.StaticPolicy)",
}


def followed(path: Path) -> set[Path]:
    """The pages that a page of the site links to: in its text, its cards and its tables of contents."""
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+\.md)", text) + re.findall(r"^:link: (\S+)$", text, re.MULTILINE)
    for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        links += [line for line in tree.splitlines() if line and not line.startswith(":")]
    places = {(path.parent / (link if link.endswith(".md") else f"{link}.md")).resolve() for link in links}
    return {place for place in places if place.is_file()}


@pytest.mark.parametrize("start", [DOCS / "index.md", README], ids=["site", "readme"])
@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_at_most_three_clicks_from_the_front_page(task, start):
    reached, clicks = {start}, 0
    while not any(TASKS[task] in page.read_text(encoding="utf-8") for page in reached - {start}):
        reached |= {link for page in reached for link in followed(page)}
        clicks += 1
        assert clicks <= 3, f"{task}: not within three clicks"


def test_the_compatibility_page_was_made_with_this_version():
    assert f"with sinkscope {sinkscope.__version__}, " in (DOCS / "compatibility.md").read_text(encoding="utf-8")


def test_every_page_is_in_a_table_of_contents():
    trees, waiting = {DOCS / "index.md"}, [DOCS / "index.md"]
    while waiting:
        new = followed(waiting.pop()) - trees
        trees |= new
        waiting += new
    assert {path for path in PAGES if DOCS in path.parents} <= trees


def test_how_we_know_names_tests_that_are_there():
    named = re.findall(r"`tests/(\S+)::(\w+)`", (DOCS / "project" / "how_we_know.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name


def test_the_table_of_probes_has_every_probe_with_the_variables_it_declares():
    text = (DOCS / "reference" / "probes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\(.*?\)` \| (.*?) \| .* \|$", text, re.MULTILINE)
    listed = {name: set(re.findall(r"`([a-z_]+)`", words)) for name, words in rows if hasattr(probes, name)}
    made = {name: set(getattr(probes, name).makes) for name in probes.__all__ if getattr(probes, name) in concrete()}
    for shared in ("output_norm",):  # listed once, with the probe that makes nothing else
        made["EvictionEffect"].discard(shared)
    assert listed == made


def concrete():
    return [each for each in probes.probe_classes() if each.makes and each.__module__.startswith("sinkscope.")]
