"""Training one small Llama-style language model on a text, character by character."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import sinkscope
from sinkscope.experiments.runner import Advance
from sinkscope.hf.attention import AttentionCall, MaskRequest, register, use_implementation
from sinkscope.hf.models import new_llama
from sinkscope.lab.decoder import Arm, Sizes
from sinkscope.lab.runs import TrainingRun
from sinkscope.normalisers import Normaliser, Softmax

BETAS, CLIPPED_NORM, LAST_RATE, WARM_STEPS = (0.9, 0.95), 1.0, 0.1, 100
ROOM = 4  # the model is told of so many times its trained length; nothing is computed from it
WEIGHTS = "weights."
ATTENTION = "sinkscope_lab"  # as transformers knows it
NORMALISERS: WeakKeyDictionary[nn.Module, Normaliser] = WeakKeyDictionary()


@dataclass(frozen=True)
class LanguageSchedule:
    """How a language model is trained.

    Attributes:
        steps: updates.
        batch: sequences in each.
        learning_rate: of AdamW at its highest; it rises over the first steps and falls along a cosine to a tenth.
        weight_decay: of AdamW.
        every: steps over which a recorded loss is the mean.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    every: int

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = min(WARM_STEPS, max(1, self.steps // 10))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.learning_rate * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))

    @property
    def recorded(self) -> list[int]:
        """Updates done at the end of each stretch that a loss is recorded for."""
        return sorted({*range(self.every, self.steps + 1, self.every), self.steps})


@dataclass(frozen=True, eq=False)
class LanguageRun(TrainingRun):
    """One arm and one seed, which decides the first weights and the passages: runs of one seed share both.

    Attributes:
        ids: the text to learn from [token].
        text_sha256: of the whole text.
        sizes: of the model; the last token of its vocabulary is the sink token, which only its arm uses.
    """

    ids: np.ndarray
    text_sha256: str
    sizes: Sizes
    schedule: LanguageSchedule
    arm: Arm
    seed: int
    device: str

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "task": "language",
            "text": self.text_sha256,
            "tokens": len(self.ids),
            "sizes": self.sizes,
            "schedule": self.schedule,
            "arm": self.arm,
            "seed": self.seed,
            "device": self.device.partition(":")[0],
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "sinkscope": sinkscope.__version__,
        }

    def train(self, advance: Advance) -> dict[str, Tensor]:
        """The mean losses [step] in nats, and the weights."""
        model: Any = self.untrained()
        model.to(self.device)
        optimiser = torch.optim.AdamW(
            model.parameters(),
            lr=self.schedule.learning_rate,
            betas=BETAS,
            weight_decay=self.schedule.weight_decay,
        )
        means, losses = [], []
        with training_attention(model, self.arm.normaliser):
            for step, passages in enumerate(self._passages()):
                for group in optimiser.param_groups:
                    group["lr"] = self.schedule.rate(step)
                loss = self._loss(model, passages)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIPPED_NORM)
                optimiser.step()
                losses.append(loss.detach())
                if step + 1 in self.schedule.recorded:
                    means.append(torch.stack(losses).mean())
                    self.check_finite(means[-1], step + 1)
                    losses = []
                advance(1)
        weights = {WEIGHTS + name: tensor for name, tensor in model.state_dict().items()}
        return {"train_loss": torch.stack(means).cpu()} | weights

    def untrained(self) -> Any:
        """The model as its training begins."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = new_llama(
                vocabulary=self.sizes.vocabulary,
                width=self.sizes.width,
                layers=self.sizes.layers,
                heads=self.sizes.heads,
                positions=ROOM * self.sizes.length,
                begin_token=self.sink_token,
            )
        return model.eval()  # there is no dropout, so training and evaluation are the same

    def trained(self, found: dict[str, Tensor]) -> Any:
        """The model with the weights that `train` found."""
        model: Any = self.untrained()
        weights = {name.removeprefix(WEIGHTS): each for name, each in found.items() if name.startswith(WEIGHTS)}
        model.load_state_dict(weights)
        return model.to(self.device)

    @property
    def sink_token(self) -> int:
        return self.sizes.vocabulary - 1

    def with_sink_token(self, ids: Tensor) -> Tensor:
        """Token ids [sequence, token] as this arm reads them."""
        return functional.pad(ids, (1, 0), value=self.sink_token) if self.arm.has_sink_token else ids

    def _loss(self, model: nn.Module, passages: Tensor) -> Tensor:
        """Mean loss over the tokens that a text itself allows to predict: all but the first, in every arm."""
        tokens = self.sizes.length - 1
        logits = model(self.with_sink_token(passages)).logits
        predicting = logits[:, logits.shape[1] - 1 - tokens : -1]
        return functional.cross_entropy(predicting.flatten(0, 1), passages[:, 1:].flatten())

    def _passages(self) -> Iterator[Tensor]:
        """Token ids [batch, token] of each step: passages that begin anywhere in the text."""
        generator = torch.Generator().manual_seed(self.seed)
        text = torch.tensor(self.ids)
        last, length = len(text) - self.sizes.length, self.sizes.length
        for _ in range(self.size):
            starts = torch.randint(last + 1, (self.schedule.batch,), generator=generator)
            yield text[starts[:, None] + torch.arange(length)].to(self.device)


@contextmanager
def training_attention(model: Any, normaliser: Normaliser) -> Iterator[None]:
    """Within it the model's attention has this normaliser; softmax is its own, and quicker left alone.

    The same as `attached(model, normaliser=...)`, which keeps no T x T weights and so computes them twice in training:
    for short passages this is three times quicker.
    """
    if normaliser == Softmax():
        yield
        return
    modules = [layer.self_attn for layer in model.model.layers]
    with ExitStack() as undo:
        for module in modules:
            NORMALISERS[module] = normaliser
            undo.callback(NORMALISERS.pop, module, None)
        use_implementation(model, ATTENTION, undo)
        yield


def _attention(call: AttentionCall) -> tuple[Tensor, None]:
    """Causal attention [batch, head, query, dim]."""
    scores = call.query @ call.key.mT * call.scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = NORMALISERS[call.module].weights(scores.masked_fill(later, -torch.inf))
    return weights @ call.value, None


def _no_mask(asked: MaskRequest) -> None:
    """The attention function knows what is later by itself."""


register(ATTENTION, _attention, _no_mask)
