"""Maps, rows and numbers of a setting as the bytes that a page holds: small, and read back by page.js.

A map is bytes as `pixels` makes them. Of a causal one the triangle of seen cells is kept. Those of a setting are told
by their distance from those of the model as it is, 1 for none, so that rows which a policy leaves alone take no room.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sinkscope.explorer.controller import Controller
from sinkscope.explorer.pixels import RANKINGS, pooled
from sinkscope.explorer.results import Guesses, Loss

COARSEST = 16  # cells along each side of a map at least
TOKENS_A_CELL = (1, 2, 3, 4, 6, 8, 12, 16)  # what is tried, finest first


@dataclass
class Setting:
    """All that a page shows of one setting."""

    name: str
    note: str
    losses: np.ndarray  # [token] nats
    guesses: Guesses
    loss: Loss | None  # against the model as it is
    continuation: str
    scores: dict[str, list[float | None]]  # by ranking, [unit]
    orders: dict[str, list[int]]  # by ranking, the units
    highs: list[float]  # [unit] log10 of the probability that byte 255 stands for
    shape: tuple[int, int]  # rows and columns of a map
    is_causal: bool  # whether no key behind its query is seen
    strips: np.ndarray  # [unit, row, first key] bytes
    _squares: list[bytes] = field(repr=False)  # of each unit the map [row, column], compressed meanwhile

    @classmethod
    def of(cls, controller: Controller) -> Setting:
        """What the controller shows, which has read the text to the end."""
        reading, continuation = controller.now.reading, controller.now.continuation
        assert reading is not None
        squares, strips, highs, is_causal, before = [], [], [], True, controller.unit
        shape = (0, 0)
        for unit in range(len(controller.units)):
            controller.choose(unit)
            tile = controller.tile()
            assert tile is not None
            squares.append(zlib.compress(tile.pixels.tobytes(), 1))
            strips.append(tile.sinks)
            highs.append(tile.limits.high)
            shape = (tile.pixels.shape[0], tile.pixels.shape[1])
            is_causal = is_causal and not np.triu(tile.pixels, 1).any()
        controller.choose(before)
        scores = {name: controller.scores(name) for name in RANKINGS if name != "layer"}
        known = {name: each for name, each in scores.items() if each is not None}
        return cls(
            name=controller.name,
            note=reading.note,
            losses=reading.losses,
            guesses=reading.guesses,
            loss=controller.loss,
            continuation="" if continuation is None else continuation.text,
            scores={
                name: [float(f"{s:.7g}") if np.isfinite(s) else None for s in each] for name, each in known.items()
            },
            orders={name: controller.ranked(name) for name in ("layer", *known)},
            highs=highs,
            shape=shape,
            is_causal=is_causal,
            strips=np.stack(strips),
            _squares=squares,
        )

    def maps(self, units: Sequence[int], side: int, is_causal: bool) -> np.ndarray:
        """Maps [unit, cell] of these heads, max-pooled to `side` a side; row by row, up to the diagonal if causal."""
        squares = [
            pooled(np.frombuffer(zlib.decompress(self._squares[unit]), np.uint8).reshape(self.shape), side)
            for unit in units
        ]
        whole = np.stack(squares) if squares else np.zeros((0, side, side), np.uint8)
        return whole[:, *np.tril_indices(side)] if is_causal else whole.reshape(len(whole), -1)


def beside(values: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Bytes told by their distance from `dense`: 0 stays 0, 1 is the same, the rest wraps round."""
    distance = (values.astype(np.int16) - dense) % 255 + 1
    return np.where(values == 0, 0, distance).astype(np.uint8)


def chunks(settings: Sequence[Setting], units: Sequence[int], side: int) -> list[bytes]:
    """Of each setting, the first of which is the model as it is, the maps of these heads, compressed."""
    is_causal = all(each.is_causal for each in settings)
    dense = settings[0].maps(units, side, is_causal)
    rest = [beside(each.maps(units, side, is_causal), dense) for each in settings[1:]]
    return [zlib.compress(each.tobytes(), 9) for each in (dense, *rest)]


def sizes(settings: Sequence[Setting], unit: int, side: int) -> int:
    """Bytes that the maps of one head take."""
    return sum(map(len, chunks(settings, [unit], side)))


def numbers(settings: Sequence[Setting]) -> list[bytes]:
    """Of each setting the strips [unit, row, first key], losses, ids and probabilities of next tokens, compressed."""
    dense, packed = settings[0].strips, []
    for each in settings:
        strips = each.strips if each is settings[0] else beside(each.strips, dense)
        guesses = each.guesses
        parts = [strips, *(a.astype("<f4") for a in (each.losses, guesses.probabilities)), guesses.ids.astype("<i4")]
        packed.append(zlib.compress(b"".join(np.ascontiguousarray(part).tobytes() for part in parts), 9))
    return packed


def in_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def in_base64(length: int) -> int:
    """Characters that so many bytes take in base64."""
    return -(-length // 3) * 4
