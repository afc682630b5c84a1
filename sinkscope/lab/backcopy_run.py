"""Training one small model on the Bigram-Backcopy task, and what is measured meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.lab.arms import Arm
from sinkscope.lab.backcopy import Backcopy
from sinkscope.lab.decoder import Decoder, Sizes
from sinkscope.lab.observe import observed
from sinkscope.lab.runs import Advance, TrainingRun

DRAWN_AT_ONCE = 32  # batches: drawing one character at a time is quicker for many sequences
BETAS = (0.9, 0.99)  # of AdamW, as Guo et al. have them
EVALUATION_SEED = 2**40  # of the sequences that every run is measured on; no run trains with it


@dataclass(frozen=True)
class Schedule:
    """How a model is trained.

    Attributes:
        steps: updates.
        batch: sequences in each.
        learning_rate, weight_decay: of AdamW, the same throughout.
        every: steps between two measurements; the last step is measured too.
        evaluated: sequences measured on.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    every: int
    evaluated: int

    @property
    def measured(self) -> list[int]:
        """Updates done at each measurement."""
        return [*range(0, self.steps, self.every), self.steps]


@dataclass(frozen=True)
class BackcopyRun(TrainingRun):
    """One arm and one seed, which decides the first weights and the sequences: runs of one seed share both."""

    task: Backcopy
    text_sha256: str
    sizes: Sizes
    schedule: Schedule
    arm: Arm
    seed: int
    device: str

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def steps(self) -> int:
        return self.schedule.steps

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "task": "bigram backcopy",
            "text": self.text_sha256,
            "characters": self.task.characters,
            "triggers": self.task.triggers,
            "sizes": self.sizes,
            "schedule": self.schedule,
            "arm": self.arm,
            "seed": self.seed,
            "device": self.device.partition(":")[0],
            "torch": torch.__version__,
            "sinkscope": sinkscope.__version__,
        }

    def train(self, advance: Advance) -> dict[str, Tensor]:
        """What `observed` gives, with the step as one more dimension in front."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Decoder(self.sizes, self.arm).to(self.device)
        evaluated = evaluation_ids(self.task, self.sizes, self.schedule).to(self.device)
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=self.schedule.learning_rate, betas=BETAS, weight_decay=self.schedule.weight_decay
        )
        found = [observed(model, self.task, evaluated)]
        for step, ids in enumerate(self._batches(), start=1):
            logits, _ = model(ids[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step in self.schedule.measured:
                found.append(self._finite(observed(model, self.task, evaluated), step))
            advance(1)
        return {name: torch.stack([each[name] for each in found]).float().cpu() for name in found[0]}

    def _batches(self) -> Iterator[Tensor]:
        """Token ids [batch, 1 + token] of each step, drawn on the CPU, so that they are the same on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.steps, DRAWN_AT_ONCE):
            batches = min(DRAWN_AT_ONCE, self.steps - start)
            ids = self.task.sample(batches * self.schedule.batch, self.sizes.length, generator)
            yield from ids.to(self.device).split(self.schedule.batch)

    def _finite(self, found: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        if not bool(found["loss"][0].isfinite()):
            raise SinkscopeError(
                f"training the arm {self.arm.name!r} with seed {self.seed} went astray: its loss at step {step} is not "
                "finite; give a lower learning_rate."
            )
        return found


def evaluation_ids(task: Backcopy, sizes: Sizes, schedule: Schedule) -> Tensor:
    """The sequences [sequence, 1 + token] that every run is measured on."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    return task.sample(schedule.evaluated, sizes.length, generator)
