"""The figures of the softmax section, and what each of them shows."""

from __future__ import annotations

from sinkscope import figures as draw
from sinkscope.reporting.plate import Plate

SOFTMAX: tuple[Plate, ...] = (
    Plate(
        "forced_mass",
        "What sum-to-one would force on the other keys",
        draw.forced_mass,
        ("forced",),
        ("log_amplification",),
        "Computed from dense attention, exactly and one layer at a time: if the first keys were evicted and hold the "
        "mass m of a query, sum-to-one multiplies every other weight by 1/(1 − m). Left: that factor, its geometric "
        "mean over queries and texts, by layer and head; uniform causal attention is the null. Right: the change of a "
        "head's output as a share of it (mean norms), and the two vectors that add up to it: the lost denominator, "
        "what the others gain, and the lost value, what the evicted keys handed on. What later layers make of it is "
        "not in it.",
        causal_only=True,
    ),
    Plate(
        "collapse",
        "The collapse, decomposed",
        draw.collapse,
        ("collapse",),
        ("nll",),
        "Perplexity of the same tokens in caches of the same size, positions counted in the cache. Full sinks: the "
        "first tokens stay beside the window. Phantom: their keys stay in the denominator, their values are zeroed or "
        "replaced by the mean of the values that the query sees. Values only: what the sinks would hand on is added, "
        "their keys are out of the denominator of the others. Window: they are gone; nothing is re-computed. All of it "
        "in every layer at once. Whiskers are paired 95% block-bootstrap intervals of the ratio; the shares are of the "
        "gap in mean loss between window and full sinks, and below zero where a part is worse than none.",
    ),
    Plate(
        "dose_response",
        "Dose and response",
        draw.dose_response,
        ("dose",),
        ("nll", "sink_mass", "output_norm"),
        "A bias on the logit of the first token in all layers and heads, from minus infinity (gone) over 0 (as the "
        "model is) upwards, and the same on a random token drawn for each text as control. Everything is measured over "
        "the queries from the start on; before it nothing is changed. Intervals of perplexity are paired, over "
        "positions; those of mass and output are over texts.",
    ),
    Plate(
        "effects",
        "Effect against control",
        draw.effects,
        ("interventions",),
        ("nll", "sink_mass"),
        "What each intervention does to perplexity and to the mass on the first token, and below it what as much of "
        "something else does: as many random keys evicted, other tokens replaced, as many tokens cut out behind the "
        "sinks. The same tokens are scored in all rows. A row is about this text and these places: intervals cover "
        "neither other models nor other draws of the control.",
    ),
    Plate(
        "predictability",
        "Sink mass against predictability",
        draw.predictability,
        ("predictability",),
        ("sink_mass", "next_entropy"),
        "If a sink is where a head parks attention when it has nothing to say, its mass should go with how well the "
        "next token is predicted. Left: mass by entropy of the model's next-token distribution, queries sorted into "
        "ten bins of equal size, beside that of uniform attention from the same queries. Right: for each head the rank "
        "correlation of the two within a text, mean over texts. It is a correlation: it does not say which of the two "
        "makes the other.",
        causal_only=True,
    ),
)
