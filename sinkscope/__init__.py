"""sinkscope: where the attention of a transformer goes, exactly.

The public names are listed here and imported when first used, so that ``import sinkscope`` takes no time and reading a
saved record needs neither torch nor transformers.
"""

from __future__ import annotations

from sinkscope.lazy import lazily

__version__ = "0.2.0"

_HOMES = {
    "sinkscope.errors": ["SinkscopeError"],
    "sinkscope.record": ["first_evicted", "open_record", "save_record"],
    "sinkscope.hf.loading": ["load"],
    "sinkscope.texts": ["read_text", "read_tokens"],
    "sinkscope.places": ["text_of_tokens"],
    "sinkscope.spans": ["Spans"],
    "sinkscope.sampling": ["read_segments", "segments", "sequences"],
    "sinkscope.attention.attend": ["attend", "merge", "attend_split"],
    "sinkscope.scope.scope": ["attached", "capture"],
    "sinkscope.scope.measure": ["attention_maps", "measure"],
    "sinkscope.normalisers": [
        "ClippedSoftmax", "LearnedSink", "Normaliser", "ReLU", "Sigmoid", "Softmax", "Softmax1", "Softpick",
        "Sparsemax",
    ],
    "sinkscope.policies": [
        "Chunks", "Dense", "Dose", "Evict", "EvictRecent", "EveryNth", "HeavyHitters", "PerHead", "Policy", "Recompute",
        "ScoredPolicy", "SinkWindow", "StaticPolicy", "TOVA", "Window",
    ],
    "sinkscope.probes": [
        "ALL", "FREE", "Compression", "DistanceProfile", "Entropy", "EvictionEffect", "FirstCosine", "Gates",
        "HiddenExtremes", "HiddenProbe", "LayerProbe", "LogSumExp", "Maps", "Measured", "MeanLogits", "Norms",
        "OutputNorm", "Reach", "Received", "Seen", "SeenMaps", "SinkDimensions", "SinkMass", "SinkPurpose",
        "SpanMass", "TileProbe", "Variable", "ZeroWeights",
    ],
    "sinkscope.analysis.ablation": ["ablate", "ablation_table"],
    "sinkscope.analysis.compare": ["compare"],
    "sinkscope.analysis.atlas": ["strength_and_collapse"],
    "sinkscope.analysis.factorial": ["factorial_table"],
    "sinkscope.analysis.discovery": ["discover", "massive_activations", "recurrence_table"],
    "sinkscope.analysis.familiarity": ["familiarity_table", "recited"],
    "sinkscope.analysis.images": ["image_grid", "image_mass", "visual_sinks", "visual_sinks_table"],
    "sinkscope.analysis.importance": ["importance", "sink_features", "sink_rate", "sink_rate_curve"],
    "sinkscope.analysis.intervals": ["interval"],
    "sinkscope.analysis.interventions": ["dose_table", "intervene", "intervention_table"],
    "sinkscope.analysis.maps": ["from_maps"],
    "sinkscope.analysis.mass": [
        "amplification", "eviction_by_layer", "mass_by_layer", "sink_mass", "uniform_importance", "uniform_mass",
        "value_drain",
    ],
    "sinkscope.analysis.perplexity": ["collapse_table", "losses_from", "ppl", "ppl_table"],
    "sinkscope.analysis.predictability": ["predictability_bins", "predictability_table"],
    "sinkscope.analysis.purposes": [
        "depth_table", "gates_table", "purpose_sensitivity", "purposes", "spike_life", "spike_overlap",
    ],
    "sinkscope.analysis.reach": ["head_gates", "reach", "reach_table", "save_head_gates"],
    "sinkscope.analysis.secondary": ["rollout", "secondary_sinks", "spread_table", "tags_table"],
    "sinkscope.analysis.sensitivity": ["mass_by_length", "sensitivity_table"],
    "sinkscope.analysis.spans": ["by_span", "span_mass", "span_table"],
    "sinkscope.experiments.perplexity": ["perplexity"],
    "sinkscope.experiments.decomposition": ["decompose", "decompose_by_layer"],
    "sinkscope.streaming.cost": ["Cost", "cost", "cost_table"],
    "sinkscope.experiments.audit": ["audit"],
    "sinkscope.experiments.timing": ["run_timing"],
    "sinkscope.analysis.costs": ["time_per_token", "timing_table"],
    "sinkscope.streaming.sink_cache": ["SinkCache"],
    "sinkscope.streaming.reading_cache": ["ScoredCache"],
    "sinkscope.streaming.conversation": ["Conversation", "stream"],
    "sinkscope.streaming.generated": ["generate_record"],
    "sinkscope.experiments.ablation": ["run_ablation"],
    "sinkscope.experiments.inside_model": ["EvictKeys", "SetMassive"],
    "sinkscope.experiments.intervention": ["Intervention", "Repeat", "ReplaceTokens", "Shift", "Trial"],
    "sinkscope.experiments.doses": ["dose_response"],
    "sinkscope.experiments.interventions": ["run_interventions"],
    "sinkscope.experiments.predictability": ["predictability"],
    "sinkscope.experiments.recall": ["recall"],
    "sinkscope.experiments.head_split": ["head_split"],
    "sinkscope.experiments.sink_values": ["sink_values"],
    "sinkscope.experiments.sink_tags": ["sink_tags"],
    "sinkscope.experiments.perturbation": ["perturbation_spread"],
    "sinkscope.experiments.grid": ["Grid"],
    "sinkscope.analysis.sweep": ["sweep", "sweep_table"],
    "sinkscope.analysis.runs": ["compare_cells", "list_cells", "sweep_losses"],
    "sinkscope.analysis.recall": ["recall_table"],
    "sinkscope.experiments.tasks": ["key_value_recall", "needle_recall", "stream_recall"],
    "sinkscope.analysis.tasks": ["accuracy_table"],
    "sinkscope.reporting.content": ["Item", "Section", "Table"],
    "sinkscope.reporting.document": ["ITEMS", "SECTIONS", "Report"],
    "sinkscope.reporting.gather": ["report"],
    "sinkscope.reporting.plan": ["Plan"],
    "sinkscope.reporting.atlas": ["atlas", "compare_reports"],
    "sinkscope.reporting.tables": ["open_table"],
    "sinkscope.explorer": ["explore"],
}  # fmt: skip
_PACKAGES = ("figures", "lab")  # whose own names are public too
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_PACKAGES, *_HOME_OF]

__getattr__, __dir__ = lazily("sinkscope", _HOME_OF, _PACKAGES)
