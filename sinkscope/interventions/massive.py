"""Massive activations set to zero, or to their mean (Sun et al. 2024, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.measure import measure
from sinkscope.core.probes import HiddenExtremes
from sinkscope.errors import SinkscopeError
from sinkscope.interventions.intervention import Arm, Intervention, Setting

MODES = ("zero", "mean")
Sites = Mapping[int, Mapping[int, float]]  # by layer and dimension: the mean of what was found there


@dataclass(frozen=True)
class SetMassive(Intervention):
    """Set massive activations behind chosen layers to zero, or to their mean.

    An activation is massive where its magnitude is above `magnitude` and at least `ratio` times the median magnitude of
    its layer's hidden state (Sun et al. 2024). The texts as they are tell in which dimensions there are any; these are
    set, in the layer's output, wherever they are massive while it runs. The mean is that of a dimension over all places
    where it was massive, in all texts: a constant. The control sets as many dimensions, drawn at random, at the same
    tokens.

    Args:
        layers: behind which; the first layer after which there are any when None.
        mode: "zero" or "mean".
        magnitude, ratio: what is massive.
    """

    layers: Sequence[int] | None = None
    mode: str = "zero"
    magnitude: float = 100.0
    ratio: float = 1000.0
    at_random: bool = False
    sites: Sites | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SinkscopeError(f"mode={self.mode!r} is unknown; give one of {', '.join(MODES)}.")
        if not (self.magnitude > 0 and self.ratio > 0):
            raise SinkscopeError(f"magnitude={self.magnitude!r} and ratio={self.ratio!r}: give numbers above 0.")

    @property
    def name(self) -> str:
        what = "random" if self.at_random else "massive"
        where = "" if self.layers is None else f" behind layers {' '.join(map(str, self.layers))}"
        return f"{what} dimensions to {self.mode}{where}"

    def control(self) -> Intervention | None:
        return None if self.at_random else replace(self, at_random=True)

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        numbers = find_anatomy(model).numbers
        for layer in self.layers or ():
            if layer not in numbers:
                raise SinkscopeError(
                    f"layer {layer} is out of range: the model has layers {numbers[0]} to {numbers[-1]}."
                )

    def prepare(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> Intervention:
        record = measure(model, list(texts), [HiddenExtremes()], progress=False)
        sites = _found(model, texts, record, self)
        if not sites:
            raise SinkscopeError(
                f"there is no activation above {self.magnitude:g} and {self.ratio:g} times the median "
                + (f"behind layers {list(self.layers)}" if self.layers else "in this model")
                + "; give a lower magnitude or ratio, or other layers."
            )
        return replace(self, sites=sites)

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        def hang(model: nn.Module, undo: ExitStack) -> None:
            for part in find_anatomy(model).parts:
                means = (self.sites or {}).get(part.number)
                if means and part.layer is not None:
                    undo.callback(part.layer.register_forward_hook(self._hook(means, setting.random(number))).remove)

        return Arm.of(text, hang=hang)

    def _hook(self, means: Mapping[int, float], random: np.random.Generator) -> Any:
        dimensions = list(means)

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            massive = self._massive(hidden)
            changed = hidden.clone()
            others = random.choice(hidden.shape[-1], len(dimensions), replace=False).tolist()
            for dimension, other in zip(dimensions, others, strict=True):
                where = massive[..., dimension]
                value = means[dimension] if self.mode == "mean" else 0.0
                if self.at_random:
                    value = float(hidden[..., other].mean()) if self.mode == "mean" else 0.0
                    changed[..., other] = changed[..., other].masked_fill(where, value)
                else:
                    changed[..., dimension] = changed[..., dimension].masked_fill(where, value)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _massive(self, hidden: Tensor) -> Tensor:
        magnitude = hidden.abs()
        return (magnitude > self.magnitude) & (magnitude >= self.ratio * magnitude.median())


def _found(model: nn.Module, texts: Sequence[Tensor], record: Any, chosen: SetMassive) -> dict[int, dict[int, float]]:
    """Massive dimensions of each layer, with their mean where they are massive."""
    largest, medians = record.activation_max.values, record.activation_median.values
    massive = (largest > chosen.magnitude) & (largest >= chosen.ratio * medians)
    layers = [int(layer) for layer, any_ in zip(record.layer.values, massive.any((0, 2)), strict=True) if any_]
    layers = layers[:1] if chosen.layers is None else [layer for layer in layers if layer in chosen.layers]
    found: dict[int, dict[int, list[float]]] = {layer: {} for layer in layers}
    parts = {part.number: part for part in find_anatomy(model).parts}

    def look(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = (output[0] if isinstance(output, tuple) else output).float()
            for place in chosen._massive(hidden).nonzero():
                found[layer].setdefault(int(place[-1]), []).append(float(hidden[tuple(place)]))

        return hook

    with ExitStack() as undo, torch.no_grad():
        for layer in layers:
            module = parts[layer].layer
            assert module is not None
            undo.callback(module.register_forward_hook(look(layer)).remove)
        for text in texts:
            find_anatomy(model).base(input_ids=text[None].to(next(model.parameters()).device))
    return {
        layer: {dimension: float(np.mean(values)) for dimension, values in sorted(dimensions.items())}
        for layer, dimensions in found.items()
        if dimensions
    }
