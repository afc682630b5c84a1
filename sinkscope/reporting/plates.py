"""What a report shows, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import xarray as xr
from matplotlib.figure import Figure

from sinkscope import figures as draw
from sinkscope.reporting.plate import Plate
from sinkscope.reporting.softmax_plates import SOFTMAX
from sinkscope.reporting.streaming_plates import STREAMING

ATTENTION: tuple[Plate, ...] = (
    Plate(
        "sink_mass_heatmap",
        "Where the first token is the sink",
        draw.sink_mass_heatmap,
        ("text",),
        ("sink_mass",),
        "Sink mass: the attention a query gives to the first token, averaged over the queries after it and"
        " over all sequences, for every layer and head. A head that looks at every key alike would give "
        "1/(i + 1) at query i (0-based); the mean of that over the queries is the uniform null, about "
        "ln(T)/T and not 1/T.",
    ),
    Plate(
        "mass_by_layer",
        "Sink mass by layer",
        draw.mass_by_layer,
        ("text",),
        ("sink_mass",),
        "The same mass averaged over the heads of each layer, for the first token and for the first four. "
        "Bands are 95% bootstrap intervals over sequences; dotted lines are the uniform nulls.",
    ),
    Plate(
        "mean_maps",
        "Mean logits and mean probabilities",
        draw.mean_maps,
        ("sentences", "text"),
        ("mean_logit", "mean_probability"),
        "Attention among the first tokens, averaged over sequences: above as logits (scaled scores before "
        "the softmax, without bound, the unit of StreamingLLM's Figure 2), below as probabilities (rows "
        "sum to at most 1, the unit of its Figure 12). The two are different quantities: each panel names "
        "its own.",
    ),
    Plate(
        "sink_rate_curve",
        "How many heads are sinks",
        draw.sink_rate_curve,
        ("text",),
        ("sink_mass",),
        "Importance α of the first token: its mean attention from all T queries, its own included. The "
        "sink rate (Gu et al. 2024) is the fraction of heads with α > ε, so it is a count of heads and not"
        " a mass. It falls as T grows, and a uniform causal head already has α = H(T)/T, marked for each "
        "T. A shorter T is a prefix of the same sequences.",
        causal_only=True,
    ),
    Plate(
        "sink_rate_published",
        "The sink rate at its published setting",
        draw.sink_rate_curve,
        ("short",),
        ("sink_mass",),
        "The same curve over many short sequences, the setting of Gu et al. 2024 (100 sequences of 64 "
        "tokens, ε = 0.3), so that the figure can be set beside published ones. What is recorded about the"
        " BOS token stands in the source line; the rate depends on it.",
        causal_only=True,
    ),
    Plate(
        "received_by_position",
        "Who else is a sink",
        draw.received_by_position,
        ("text",),
        ("received",),
        "Importance α of every position of one sequence: the mean attention it receives from the queries "
        "that can see it, averaged over layers and heads. The null, uniform causal attention, is higher "
        "for early positions. The rise at the very end is no sink: few queries see the last keys, and all "
        "of those are near.",
    ),
    Plate(
        "norms",
        "Key and value norms",
        draw.norms,
        ("text",),
        ("key_norm", "value_norm"),
        "Euclidean norms of keys and values as attention sees them. Attention that goes to a token with a "
        "small value changes little: a sink's value is drained. No null: the rest of the tokens is the "
        "comparison.",
    ),
    Plate(
        "massive_activations",
        "Massive activations",
        draw.massive_activations,
        ("text",),
        ("activation_max", "activation_median"),
        "The largest magnitude in the hidden state after each layer, and the median magnitude of the whole"
        " layer. A massive activation (Sun et al. 2024) is above 100 and at least about 1,000 times the "
        "median.",
    ),
    Plate(
        "entropy_by_layer",
        "Entropy of attention",
        draw.entropy_by_layer,
        ("text",),
        ("entropy",),
        "Entropy in nats, averaged over queries and sequences: 0 is all attention on one key. The uniform "
        "null is the mean of ln(i + 1) over the queries of a causal model (ln T for an encoder).",
    ),
    Plate(
        "distance_profile",
        "How far back attention reaches",
        draw.distance_profile,
        ("text",),
        ("distance_mass",),
        "Mean attention to the key at each distance, over the queries that reach back so far. The uniform null "
        "is the mean of 1/(i + 1) over the same queries. At the largest distances only the last queries are left "
        "and only the first tokens are so far away: where the first token is a sink, the line rises there.",
        causal_only=True,
    ),
)
SECTIONS: dict[str, tuple[Plate, ...]] = {
    "Where attention goes": ATTENTION,
    "What it costs to forget": STREAMING,
    "Why sinks: what sum-to-one forces": SOFTMAX,
}
PLATES: tuple[Plate, ...] = tuple(plate for plates in SECTIONS.values() for plate in plates)


class Figures(Mapping[str, Figure]):
    """The figures a set of records can give, by name; each is drawn when it is asked for."""

    def __init__(self, records: Mapping[str, xr.Dataset]) -> None:
        self._records = records
        self.plates = {plate.name: plate for plate in PLATES if plate.record(records) is not None}

    def __getitem__(self, name: str) -> Figure:
        plate = self.plates[name]
        record = plate.record(self._records)
        assert record is not None
        figure = plate.draw(record)
        figure.name = name  # type: ignore[attr-defined]
        return figure

    def __iter__(self) -> Iterator[str]:
        return iter(self.plates)

    def __len__(self) -> int:
        return len(self.plates)

    def __repr__(self) -> str:
        return f"Figures({', '.join(self)})"
