"""What the site takes from code, into docs/made: the command line, the gallery, an explorer page, the notebooks.

    python docs/made.py

Pictures and the explorer page are made anew only where the code that they come from has changed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import runpy
import shutil
import sys
from contextlib import chdir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import nbformat
import typer

import sinkscope
from sinkscope.cli import app

HERE = Path(__file__).parent
ROOT, MADE, GALLERY = HERE.parent, HERE / "made", HERE / "gallery"
FAMILIES = {
    "sinks": ("Sinks", "Where attention goes, by layer, head, length and position.", [
        "sink_mass_heatmap", "mass_by_layer", "mass_by_length", "sink_rate_curve", "received_by_position",
    ]),
    "attention": ("Attention, head by head", "Maps, distances, entropies, parts of a text.", [
        "mean_maps", "distance_profile", "entropy_by_layer", "span_mass", "image_grid",
    ]),
    "states": ("Norms, activations, depth", "What stands behind a sink in keys, values and hidden states.", [
        "norms", "massive_activations", "first_cosine", "depth", "purposes", "secondary_sinks", "sink_tags",
        "perturbation_spread", "rollout",
    ]),
    "streaming": ("Streaming", "Losses and costs under a policy.", [
        "log_perplexity", "ablation", "decode_cost", "recall", "accuracy", "explored", "reach", "head_split",
    ]),
    "softmax": ("Softmax, taken apart", "What eviction forces, what recovers, what grows a sink.", [
        "forced_mass", "collapse", "dose_response", "effects", "predictability", "comparison", "emergence",
        "language_emergence",
    ]),
}  # fmt: skip


def main() -> None:
    for folder in ("extra", "gallery", "notebooks", "pictures"):
        (MADE / folder).mkdir(parents=True, exist_ok=True)
    commands()
    notebooks()
    gallery()
    explorer_page()


def write(path: Path, text: str) -> None:
    """Write what has changed: Sphinx reads again what is newer."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def commands() -> None:
    """The page of the command line, from `--help` of each command."""
    group = typer.main.get_group(app)
    parts = ["# Command line", "Each section is what `sinkscope COMMAND --help` prints."]
    for name, command in group.commands.items():
        context = typer.Context(command, info_name=f"sinkscope {name}", terminal_width=100, max_content_width=100)
        parts.append(f"## sinkscope {name}\n\n```text\n{command.get_help(context).strip()}\n```")
    write(MADE / "commands.md", "\n\n".join(parts) + "\n")


def notebooks() -> None:
    """The notebooks as they were run, without views of widgets: a page has no kernel."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = cell.source.replace("](../assets/", "](../../../assets/")
            for output in cell.get("outputs", []):
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            if "outputs" in cell:
                cell.outputs = [each for each in cell.outputs if each.get("data", True)]
        write(MADE / "notebooks" / path.name, nbformat.writes(notebook))


def gallery() -> None:
    """A picture of every script in docs/gallery, a page for each family, and one with all of them."""
    seals_file = MADE / "pictures.json"
    seals = json.loads(seals_file.read_text()) if seals_file.is_file() else {}
    load = cache(sinkscope.load)
    intro = "Every figure, with the script that draws it. A click leads to the code."
    cards = ["# Gallery", intro, "````{grid} 2 2 3 3"]
    toctree = ["```{toctree}", ":hidden:", ""]
    for family, (title, intro, names) in FAMILIES.items():
        parts = [f"# {title}", intro]
        for name in names:
            script = GALLERY / f"{name}.py"
            picture, seal = MADE / "pictures" / f"{name}.png", seal_of(script, ROOT / "sinkscope" / "figures")
            if seals.get(name) != seal or not picture.is_file():
                print("drawing", name, flush=True)
                draw(script, picture, load)
                seals[name] = seal
                seals_file.write_text(json.dumps(seals, indent=1))
            heading, words, code = in_parts(script)
            figure = f"```{{image}} ../pictures/{name}.png\n:alt: {heading}\n:class: figure\n```"
            parts.append(f"({name})=\n## {heading}\n\n{words}\n\n{figure}\n\n```python\n{code}\n```")
            cards.append(
                f"```{{grid-item-card}} {heading}\n:link: {name}\n:link-type: ref\n"
                f":img-top: ../pictures/{name}.png\n:img-alt: {heading}\n```"
            )
        write(MADE / "gallery" / f"{family}.md", "\n\n".join(parts) + "\n")
        toctree.append(family)
    cards.append("````")
    write(MADE / "gallery" / "index.md", "\n\n".join([*cards, "\n".join([*toctree, "```"])]) + "\n")


def in_parts(script: Path) -> tuple[str, str, str]:
    """A script's title, what is to be said of it, and its code."""
    source = script.read_text(encoding="utf-8")
    heading, _, words = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")
    return heading.rstrip("."), words, source.split('"""', 2)[2].strip()


def draw(script: Path, picture: Path, load: object) -> None:
    """Run a script beside the project's assets, with models loaded once for all, and save its `figure`."""
    with TemporaryDirectory() as folder, chdir(folder), patch.object(sinkscope, "load", load):
        Path("assets").symlink_to(ROOT / "assets")
        figure = runpy.run_path(str(script))["figure"]
        figure.savefig(picture, dpi=160)


def explorer_page() -> None:
    """The explorer as one file, of the opening of the demo text."""
    from sinkscope.explorer.launch import named
    from sinkscope.explorer.page import page_settings, save_page
    from sinkscope.explorer.text_model import TextModel

    page, seal_file = MADE / "extra" / "explorer.html", MADE / "explorer.seal"
    seal = seal_of(ROOT / "sinkscope" / "explorer" / "page", ROOT / "sinkscope" / "explorer" / "canvases")
    if page.is_file() and seal_file.is_file() and seal_file.read_text() == seal:
        return
    print("making the explorer page", flush=True)
    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=96)[0]
    page.unlink(missing_ok=True)
    save_page(TextModel(model, ids, tokenizer), named(tokenizer, ids), page, page_settings(len(ids), [48, 24], [0, 4]))
    seal_file.write_text(seal)


def seal_of(*places: Path) -> str:
    """A hash of files and of all files in folders."""
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.*")))]
    found = hashlib.sha256(sinkscope.__version__.encode())
    for file in files:
        if file.suffix != ".pyc":
            found.update(file.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    shutil.rmtree(MADE, ignore_errors=True) if "--anew" in sys.argv else None
    main()
