"""The demo model and the beginning of its text in a folder that transformers 4.34.0 can read.

python -m tests.parity.demo FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import sinkscope
from tests.parity.models import DEMO_TOKENS


def main() -> None:
    folder = Path(sys.argv[1])
    model, tokenizer = sinkscope.load()
    model.save_pretrained(folder)
    about = json.loads((folder / "config.json").read_text())
    about["rope_theta"] = model.config.rope_parameters["rope_theta"]  # where that release looks for it
    (folder / "config.json").write_text(json.dumps(about))
    np.save(folder / "ids.npy", sinkscope.read_tokens(tokenizer, limit=DEMO_TOKENS).numpy())


if __name__ == "__main__":
    main()
