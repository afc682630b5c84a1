"""What a trained language model does on text it has not seen: where its attention goes, and what eviction costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sinkscope.core.policies import Dense, Policy, SinkWindow, Window
from sinkscope.core.probes import LogSumExp, SinkMass
from sinkscope.core.scope import attached
from sinkscope.lab.language_run import LanguageRun
from sinkscope.streaming.perplexity import perplexity

ROWS = 16  # sequences that run together


def evaluated(
    run: LanguageRun, found: dict[str, Tensor], texts: Tensor, policies: Sequence[Policy]
) -> dict[str, np.ndarray]:
    """Measure a trained model on texts [sequence, token].

    Returns:
        sink_mass [sequence, layer, head]: attention on the first token (the sink token, in its arm), mean over all
            later queries.
        virtual_mass [sequence, layer, head]: the same on the virtual key of value 0; NaN where there is none.
        nll [policy, sequence, token]: nats, for the tokens of the text alone, NaN where not scored.
    """
    model, ids, normaliser = run.trained(found), run.with_sink_token(texts), run.arm.normaliser
    probes = [SinkMass(first=1), LogSumExp()]
    with torch.no_grad(), attached(model, normaliser=normaliser, probes=probes) as scope:
        for rows in ids.split(ROWS):
            model.model(rows.to(run.device), use_cache=False)
    later = scope.record.sel(query=slice(1, None))
    mass = later["sink_mass"].isel(sink=0).mean("query").transpose("sequence", "layer", "head")
    virtual = later.get("virtual_sink_mass", mass.expand_dims(query=1) * np.nan).mean("query")
    curve = perplexity(model, ids, policies, normaliser=normaliser, progress=False)
    return {
        "sink_mass": mass.values.astype(np.float32),
        "virtual_mass": virtual.transpose("sequence", "layer", "head").values.astype(np.float32),
        "nll": curve["nll"].values[:, :, ids.shape[1] - texts.shape[1] :],
    }


def policies_of(cache_size: int, sinks: Sequence[int]) -> list[Policy]:
    """Dense attention, and so many sinks in a cache of one size; none is window attention."""
    bounded: list[Policy] = [SinkWindow(each, cache_size - each) if each else Window(cache_size) for each in sinks]
    return [Dense(), *bounded]
