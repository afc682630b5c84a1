"""What all commands share: which model and text, and how to load them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str | None,
    typer.Argument(help="A directory, a .gguf file or a name on the Hugging Face Hub; the demo model if left out."),
]
Text = Annotated[str | None, typer.Option("--text", help="A UTF-8 file or hf:NAME; the King James Bible if left out.")]
Start = Annotated[int, typer.Option("--start", min=0, help="How many tokens of the text to skip.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps, cuda:1.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars, no summary.")]
Out = Annotated[Path, typer.Option("--out", help="The folder to write to.")]


def load_options(
    dtype: str | None, device: str | None, revision: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """What was given of the options, as `load` takes them."""
    given = {
        "dtype": dtype,
        "device": device,
        "revision": revision,
        "trust_remote_code": trust_remote_code or None,
    }
    return {name: value for name, value in given.items() if value is not None}
