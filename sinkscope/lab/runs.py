"""What the laboratory's trainings share: the text, a run as a cell, which is kept on disk and not run again once it is
finished, and the comparison of all arms."""

from __future__ import annotations

import hashlib
import json
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from sinkscope.arguments import finite_number, whole_number
from sinkscope.attention.placement import kind_of
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.run_folder import TRAINING
from sinkscope.experiments.runner import Advance, Cell, finished_cells
from sinkscope.files import writable_folder
from sinkscope.hf.gguf import cache_directory
from sinkscope.lab.decoder import Arm, Sizes, arms_of
from sinkscope.models.facts import run_attributes
from sinkscope.models.identity import difference
from sinkscope.models.surroundings import machine
from sinkscope.tensors import read_tensors, write_tensors
from sinkscope.texts import read_text, text_name

Material = TypeVar("Material")
Run = TypeVar("Run", bound="TrainingRun[Any]")
ADVICE = "delete it to train this run again"
UNDER_WAY = "sinkscope training under way 1"  # kind of the files that keep how far one is
SECONDS = 15.0  # between two times of keeping that: a training that is killed loses no more


@dataclass(frozen=True)
class Text:
    """A text and what to call it."""

    name: str
    characters: str

    @classmethod
    def of(cls, source: str | os.PathLike[str] | None, text: str | None) -> Text:
        """The text itself where it is given, otherwise that of a source; SinkscopeError for both, or an empty one."""
        if text is None:
            return cls(text_name(source), read_text(source))
        if source is not None:
            raise SinkscopeError("Both source and text were given: give one of them.")
        if not text.strip():
            raise SinkscopeError("text= holds nothing but white space: give one with characters to learn from.")
        return cls("text of the caller", text)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.characters.encode("utf-8", "surrogatepass")).hexdigest()

    def encoded(self, most: int) -> tuple[str, np.ndarray]:
        """Its `most` most frequent characters, most frequent first, and the place there of each character of the text
        that is among them [character]."""
        codes = np.frombuffer(self.characters.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        known, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        place = np.full(len(known), -1)
        place[order] = np.arange(len(order))
        encoded = place[inverse]
        return "".join(chr(code) for code in known[order]), encoded[encoded >= 0]


@dataclass(frozen=True)
class TrainingSchedule:
    """How a model is trained: updates, sequences in each, AdamW's settings, and steps between two measurements."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    every: int

    @classmethod
    def of(cls, learning_rate: float, weight_decay: float, **counts: int) -> Self:
        return cls(
            **{name: whole_number(count, name, 1) for name, count in counts.items()},
            learning_rate=finite_number(learning_rate, "learning_rate", 0.0),
            weight_decay=finite_number(weight_decay, "weight_decay", 0.0, inclusive=True),
        )

    @property
    def recorded(self) -> list[int]:
        """Updates done at each measurement after the first; the last step is measured too."""
        return sorted({*range(self.every, self.steps + 1, self.every), self.steps})


class UnderWay:
    """How far a training is, kept beside the file of its result; nowhere without one.

    Args:
        path: the file of the result.
        settings: of the training, as JSON.
    """

    def __init__(self, path: Path | None, settings: str) -> None:
        self.path = None if path is None else path.with_suffix(".training.safetensors")
        self.settings, self._begun, self._written = settings, time.perf_counter(), time.monotonic()

    @property
    def seconds(self) -> float:
        """What the training took up to now, those before an interruption included."""
        return time.perf_counter() - self._begun

    def resume(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, dict[str, Tensor]]:
        """Put both where an earlier run stopped; gives the steps it had done, and what it had found.

        Raises:
            SinkscopeError: the file is damaged, or of other settings.
        """
        if self.path is None or not self.path.exists():
            return 0, {}
        tensors, about = read_tensors(self.path, "the training under way", UNDER_WAY, ADVICE)
        if other := difference(json.loads(about["settings"]), json.loads(self.settings)):
            raise SinkscopeError(f"the training under way in {self.path} is of other settings ({other}); {ADVICE}.")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimiser": {}, "found": {}}
        for name, tensor in tensors.items():
            part, _, own = name.partition(".")
            parts[part][own] = tensor
        model.load_state_dict(parts["model"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimiser"].items():
            number, _, own = name.partition(".")
            state.setdefault(int(number), {})[own] = tensor
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        self._begun -= float(about["seconds"])
        return int(about["steps"]), parts["found"]

    def due(self) -> bool:
        """Whether it is time to keep it again."""
        return self.path is not None and time.monotonic() - self._written >= SECONDS

    def keep(self, steps: int, model: nn.Module, optimiser: torch.optim.Optimizer, found: dict[str, Tensor]) -> None:
        """Replace the file, once so many steps are done."""
        assert self.path is not None
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in state.items()}
        tensors |= {f"found.{name}": tensor for name, tensor in found.items()}
        about = {"settings": self.settings, "steps": str(steps), "seconds": repr(self.seconds)}
        write_tensors(self.path, "the training under way", UNDER_WAY, tensors, about)
        self._written = time.monotonic()

    def finish(self) -> None:
        """Take the file away: the result is kept."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class TrainingRun(Cell[dict[str, Tensor]], Generic[Material]):
    """One model trained once: one arm and one seed, which decides the first weights and what is trained on of the
    material, so that runs of one seed share both."""

    material: Material
    text_sha256: str
    sizes: Sizes
    schedule: Any
    arm: Arm
    seed: int
    device: str
    machine: dict[str, str] = field(init=False)  # precision and versions

    betas: ClassVar[tuple[float, float]]  # of AdamW

    def __post_init__(self) -> None:
        object.__setattr__(self, "machine", machine(self.device.partition(":")[0]))

    @abstractmethod
    def train(self, advance: Advance, way: UnderWay) -> dict[str, Tensor]:
        """The result, by name; from where an earlier run stopped, to the bit."""

    @property
    def settings(self) -> dict[str, Any]:  # type: ignore[override]
        definition = self.arm.normaliser.definition
        return {
            "text": self.text_sha256,
            **{name: getattr(self, name) for name in ("sizes", "schedule", "arm", "seed")},
            **({"arm_definition": definition} if definition else {}),
            **self.machine,
        }

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def size(self) -> int:  # type: ignore[override]
        return int(self.schedule.steps)

    def read(self, path: Path | None) -> dict[str, Tensor] | None:
        if path is None or not path.exists():
            return None
        tensors, about = read_tensors(path, "the training run", TRAINING, ADVICE)
        if other := difference(json.loads(about["settings"]), json.loads(self.settings_text)):
            raise SinkscopeError(
                f"the training run {path} is of other settings than its name says ({other}); {ADVICE}."
            )
        return tensors

    def run(self, path: Path | None, advance: Advance) -> dict[str, Tensor]:
        way = UnderWay(path, self.settings_text)
        if other := difference(self.machine, machine(self.device.partition(":")[0])):
            raise SinkscopeError(f"a worker runs otherwise than this run began with ({other}); set both the same.")
        result = self.train(advance, way)
        result["seconds"] = torch.tensor(way.seconds, dtype=torch.float64)
        if path is not None:
            self.keep(result, path)
            way.finish()
        return result

    def keep(self, result: dict[str, Tensor], path: Path) -> None:
        write_tensors(path, "the training run", TRAINING, result, {"settings": self.settings_text})

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        rates = {"lr": self.schedule.learning_rate, "weight_decay": self.schedule.weight_decay}
        return torch.optim.AdamW(model.parameters(), betas=self.betas, **rates)

    def check_finite(self, loss: Tensor, step: int) -> None:
        if not bool(loss.isfinite()):
            raise SinkscopeError(
                f"training the arm {self.arm.name!r} with seed {self.seed} went astray: its loss at step {step} is not "
                "finite; give a lower learning_rate."
            )


class Comparison(Generic[Run]):
    """Runs of every arm with every seed, and the result of each: `make` gives the run of an arm and a seed on a device,
    all other arguments and the errors are those of `bigram_backcopy`."""

    def __init__(
        self,
        make: Callable[[Arm, int, str], Run],
        arms: str | Arm | Iterable[str | Arm],
        seeds: int | Iterable[int],
        device: str,
        folder: str | os.PathLike[str] | None,
        n_jobs: int | None,
        progress: bool | None,
    ) -> None:
        self.arms = arms_of(arms)
        given = [seeds] if isinstance(seeds, int) else list(seeds)
        if not given:
            raise SinkscopeError("no seeds were given; give one or more, three or more for intervals.")
        self.seeds = list(dict.fromkeys(whole_number(seed, "seed", 0) for seed in given))
        try:
            self.device = str(torch.empty(0, device=device).device)
        except (RuntimeError, AssertionError, TypeError) as problem:
            reason = str(problem).splitlines()[0]
            raise SinkscopeError(f"device={device!r} cannot be used here ({reason}).") from problem
        self.runs = [make(arm, seed, self.device) for arm in self.arms for seed in self.seeds]
        place = writable_folder(cache_directory() / "lab" if folder is None else folder, "training runs")
        found = dict(finished_cells(self.runs, place, n_jobs, progress, unit="step"))
        self.results = [found[run.key] for run in self.runs]

    def joined(self, name: str, results: Sequence[Mapping[str, Any]] | None = None) -> np.ndarray:
        """A variable [...] of the results of all runs, or of others in their order, as [arm, seed, ...]."""
        values = np.stack([np.asarray(result[name]) for result in results or self.results])
        return rearrange(values, "(arm seed) ... -> arm seed ...", arm=len(self.arms))

    @property
    def coordinates(self) -> dict[str, Any]:
        """Arms, with the class of their normalisers and what is trained with them, seeds, layers and heads."""
        sizes = self.runs[0].sizes
        return {
            "arm": [arm.name for arm in self.arms],
            "normaliser_kind": ("arm", [kind_of(type(arm.normaliser)) for arm in self.arms]),
            "has_sink_logit": ("arm", [int(arm.has_sink_logit) for arm in self.arms]),
            "has_sink_token": ("arm", [int(arm.has_sink_token) for arm in self.arms]),
            "has_gate": ("arm", [int(arm.has_gate) for arm in self.arms]),
            "seed": self.seeds,
            "layer": np.arange(sizes.layers),
            "head": np.arange(sizes.heads),
        }

    def attributes(self, text: Text) -> dict[str, Any]:
        """What was trained, on what and how, with which versions, and when."""
        first = self.runs[0]
        return {
            "text": text.name,
            "text_sha256": text.sha256,
            "optimiser": f"AdamW, betas {first.betas}",
            **vars(first.schedule),
            **{name: getattr(first.sizes, name) for name in ("layers", "heads", "width")},
            "dtype": "float32",
            "device": self.device,
            "arms": "; ".join(map(repr, self.arms)),
            "seeds": ", ".join(map(str, self.seeds)),
            **run_attributes(),
        }
