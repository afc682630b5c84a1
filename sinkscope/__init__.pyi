# Made by `make stub` from __init__.py. Do not edit it.

from sinkscope import figures as figures
from sinkscope import lab as lab
from sinkscope.analysis.ablation import ablate as ablate
from sinkscope.analysis.ablation import ablation_table as ablation_table
from sinkscope.analysis.atlas import strength_and_collapse as strength_and_collapse
from sinkscope.analysis.compare import compare as compare
from sinkscope.analysis.costs import time_per_token as time_per_token
from sinkscope.analysis.costs import timing_table as timing_table
from sinkscope.analysis.discovery import discover as discover
from sinkscope.analysis.discovery import massive_activations as massive_activations
from sinkscope.analysis.discovery import recurrence_table as recurrence_table
from sinkscope.analysis.factorial import factorial_table as factorial_table
from sinkscope.analysis.familiarity import familiarity_table as familiarity_table
from sinkscope.analysis.familiarity import recited as recited
from sinkscope.analysis.images import image_grid as image_grid
from sinkscope.analysis.images import image_mass as image_mass
from sinkscope.analysis.images import visual_sinks as visual_sinks
from sinkscope.analysis.images import visual_sinks_table as visual_sinks_table
from sinkscope.analysis.importance import importance as importance
from sinkscope.analysis.importance import sink_features as sink_features
from sinkscope.analysis.importance import sink_rate as sink_rate
from sinkscope.analysis.importance import sink_rate_curve as sink_rate_curve
from sinkscope.analysis.intervals import interval as interval
from sinkscope.analysis.interventions import dose_table as dose_table
from sinkscope.analysis.interventions import intervene as intervene
from sinkscope.analysis.interventions import intervention_table as intervention_table
from sinkscope.analysis.maps import from_maps as from_maps
from sinkscope.analysis.mass import amplification as amplification
from sinkscope.analysis.mass import eviction_by_layer as eviction_by_layer
from sinkscope.analysis.mass import mass_by_layer as mass_by_layer
from sinkscope.analysis.mass import sink_mass as sink_mass
from sinkscope.analysis.mass import uniform_importance as uniform_importance
from sinkscope.analysis.mass import uniform_mass as uniform_mass
from sinkscope.analysis.mass import value_drain as value_drain
from sinkscope.analysis.perplexity import collapse_table as collapse_table
from sinkscope.analysis.perplexity import losses_from as losses_from
from sinkscope.analysis.perplexity import ppl as ppl
from sinkscope.analysis.perplexity import ppl_table as ppl_table
from sinkscope.analysis.predictability import predictability_bins as predictability_bins
from sinkscope.analysis.predictability import predictability_table as predictability_table
from sinkscope.analysis.purposes import depth_table as depth_table
from sinkscope.analysis.purposes import gates_table as gates_table
from sinkscope.analysis.purposes import purpose_sensitivity as purpose_sensitivity
from sinkscope.analysis.purposes import purposes as purposes
from sinkscope.analysis.purposes import spike_life as spike_life
from sinkscope.analysis.purposes import spike_overlap as spike_overlap
from sinkscope.analysis.reach import head_gates as head_gates
from sinkscope.analysis.reach import reach as reach
from sinkscope.analysis.reach import reach_table as reach_table
from sinkscope.analysis.reach import save_head_gates as save_head_gates
from sinkscope.analysis.recall import recall_table as recall_table
from sinkscope.analysis.runs import compare_cells as compare_cells
from sinkscope.analysis.runs import list_cells as list_cells
from sinkscope.analysis.runs import sweep_losses as sweep_losses
from sinkscope.analysis.secondary import rollout as rollout
from sinkscope.analysis.secondary import secondary_sinks as secondary_sinks
from sinkscope.analysis.secondary import spread_table as spread_table
from sinkscope.analysis.secondary import tags_table as tags_table
from sinkscope.analysis.sensitivity import mass_by_length as mass_by_length
from sinkscope.analysis.sensitivity import sensitivity_table as sensitivity_table
from sinkscope.analysis.spans import by_span as by_span
from sinkscope.analysis.spans import span_mass as span_mass
from sinkscope.analysis.spans import span_table as span_table
from sinkscope.analysis.sweep import sweep as sweep
from sinkscope.analysis.sweep import sweep_table as sweep_table
from sinkscope.analysis.tasks import accuracy_table as accuracy_table
from sinkscope.attention.attend import attend as attend
from sinkscope.attention.attend import attend_split as attend_split
from sinkscope.attention.attend import merge as merge
from sinkscope.errors import SinkscopeError as SinkscopeError
from sinkscope.experiments.ablation import run_ablation as run_ablation
from sinkscope.experiments.audit import audit as audit
from sinkscope.experiments.decomposition import decompose as decompose
from sinkscope.experiments.decomposition import decompose_by_layer as decompose_by_layer
from sinkscope.experiments.doses import dose_response as dose_response
from sinkscope.experiments.grid import Grid as Grid
from sinkscope.experiments.head_split import head_split as head_split
from sinkscope.experiments.inside_model import EvictKeys as EvictKeys
from sinkscope.experiments.inside_model import SetMassive as SetMassive
from sinkscope.experiments.intervention import Intervention as Intervention
from sinkscope.experiments.intervention import Repeat as Repeat
from sinkscope.experiments.intervention import ReplaceTokens as ReplaceTokens
from sinkscope.experiments.intervention import Shift as Shift
from sinkscope.experiments.intervention import Trial as Trial
from sinkscope.experiments.interventions import run_interventions as run_interventions
from sinkscope.experiments.perplexity import perplexity as perplexity
from sinkscope.experiments.perturbation import perturbation_spread as perturbation_spread
from sinkscope.experiments.predictability import predictability as predictability
from sinkscope.experiments.recall import recall as recall
from sinkscope.experiments.sink_tags import sink_tags as sink_tags
from sinkscope.experiments.sink_values import sink_values as sink_values
from sinkscope.experiments.tasks import key_value_recall as key_value_recall
from sinkscope.experiments.tasks import needle_recall as needle_recall
from sinkscope.experiments.tasks import stream_recall as stream_recall
from sinkscope.experiments.timing import run_timing as run_timing
from sinkscope.explorer import explore as explore
from sinkscope.hf.loading import load as load
from sinkscope.normalisers import ClippedSoftmax as ClippedSoftmax
from sinkscope.normalisers import LearnedSink as LearnedSink
from sinkscope.normalisers import Normaliser as Normaliser
from sinkscope.normalisers import ReLU as ReLU
from sinkscope.normalisers import Sigmoid as Sigmoid
from sinkscope.normalisers import Softmax as Softmax
from sinkscope.normalisers import Softmax1 as Softmax1
from sinkscope.normalisers import Softpick as Softpick
from sinkscope.normalisers import Sparsemax as Sparsemax
from sinkscope.places import text_of_tokens as text_of_tokens
from sinkscope.policies import TOVA as TOVA
from sinkscope.policies import Chunks as Chunks
from sinkscope.policies import Dense as Dense
from sinkscope.policies import Dose as Dose
from sinkscope.policies import EveryNth as EveryNth
from sinkscope.policies import Evict as Evict
from sinkscope.policies import EvictRecent as EvictRecent
from sinkscope.policies import HeavyHitters as HeavyHitters
from sinkscope.policies import PerHead as PerHead
from sinkscope.policies import Policy as Policy
from sinkscope.policies import Recompute as Recompute
from sinkscope.policies import ScoredPolicy as ScoredPolicy
from sinkscope.policies import SinkWindow as SinkWindow
from sinkscope.policies import StaticPolicy as StaticPolicy
from sinkscope.policies import Window as Window
from sinkscope.probes import ALL as ALL
from sinkscope.probes import FREE as FREE
from sinkscope.probes import Compression as Compression
from sinkscope.probes import DistanceProfile as DistanceProfile
from sinkscope.probes import Entropy as Entropy
from sinkscope.probes import EvictionEffect as EvictionEffect
from sinkscope.probes import FirstCosine as FirstCosine
from sinkscope.probes import Gates as Gates
from sinkscope.probes import HiddenExtremes as HiddenExtremes
from sinkscope.probes import HiddenProbe as HiddenProbe
from sinkscope.probes import LayerProbe as LayerProbe
from sinkscope.probes import LogSumExp as LogSumExp
from sinkscope.probes import Maps as Maps
from sinkscope.probes import MeanLogits as MeanLogits
from sinkscope.probes import Measured as Measured
from sinkscope.probes import Norms as Norms
from sinkscope.probes import OutputNorm as OutputNorm
from sinkscope.probes import Reach as Reach
from sinkscope.probes import Received as Received
from sinkscope.probes import Seen as Seen
from sinkscope.probes import SeenMaps as SeenMaps
from sinkscope.probes import SinkDimensions as SinkDimensions
from sinkscope.probes import SinkMass as SinkMass
from sinkscope.probes import SinkPurpose as SinkPurpose
from sinkscope.probes import SpanMass as SpanMass
from sinkscope.probes import TileProbe as TileProbe
from sinkscope.probes import Variable as Variable
from sinkscope.probes import ZeroWeights as ZeroWeights
from sinkscope.record import first_evicted as first_evicted
from sinkscope.record import open_record as open_record
from sinkscope.record import save_record as save_record
from sinkscope.reporting.atlas import atlas as atlas
from sinkscope.reporting.atlas import compare_reports as compare_reports
from sinkscope.reporting.content import Item as Item
from sinkscope.reporting.content import Section as Section
from sinkscope.reporting.content import Table as Table
from sinkscope.reporting.document import ITEMS as ITEMS
from sinkscope.reporting.document import SECTIONS as SECTIONS
from sinkscope.reporting.document import Report as Report
from sinkscope.reporting.gather import report as report
from sinkscope.reporting.plan import Plan as Plan
from sinkscope.reporting.tables import open_table as open_table
from sinkscope.sampling import read_segments as read_segments
from sinkscope.sampling import segments as segments
from sinkscope.sampling import sequences as sequences
from sinkscope.scope.measure import attention_maps as attention_maps
from sinkscope.scope.measure import measure as measure
from sinkscope.scope.scope import attached as attached
from sinkscope.scope.scope import capture as capture
from sinkscope.spans import Spans as Spans
from sinkscope.streaming.conversation import Conversation as Conversation
from sinkscope.streaming.conversation import stream as stream
from sinkscope.streaming.cost import Cost as Cost
from sinkscope.streaming.cost import cost as cost
from sinkscope.streaming.cost import cost_table as cost_table
from sinkscope.streaming.generated import generate_record as generate_record
from sinkscope.streaming.reading_cache import ScoredCache as ScoredCache
from sinkscope.streaming.sink_cache import SinkCache as SinkCache
from sinkscope.texts import read_text as read_text
from sinkscope.texts import read_tokens as read_tokens

__version__: str
__all__ = [
    "__version__",
    "figures",
    "lab",
    "SinkscopeError",
    "first_evicted",
    "open_record",
    "save_record",
    "load",
    "read_text",
    "read_tokens",
    "text_of_tokens",
    "Spans",
    "read_segments",
    "segments",
    "sequences",
    "attend",
    "merge",
    "attend_split",
    "attached",
    "capture",
    "attention_maps",
    "measure",
    "ClippedSoftmax",
    "LearnedSink",
    "Normaliser",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Softmax1",
    "Softpick",
    "Sparsemax",
    "Chunks",
    "Dense",
    "Dose",
    "Evict",
    "EvictRecent",
    "EveryNth",
    "HeavyHitters",
    "PerHead",
    "Policy",
    "Recompute",
    "ScoredPolicy",
    "SinkWindow",
    "StaticPolicy",
    "TOVA",
    "Window",
    "ALL",
    "FREE",
    "Compression",
    "DistanceProfile",
    "Entropy",
    "EvictionEffect",
    "FirstCosine",
    "Gates",
    "HiddenExtremes",
    "HiddenProbe",
    "LayerProbe",
    "LogSumExp",
    "Maps",
    "Measured",
    "MeanLogits",
    "Norms",
    "OutputNorm",
    "Reach",
    "Received",
    "Seen",
    "SeenMaps",
    "SinkDimensions",
    "SinkMass",
    "SinkPurpose",
    "SpanMass",
    "TileProbe",
    "Variable",
    "ZeroWeights",
    "ablate",
    "ablation_table",
    "compare",
    "strength_and_collapse",
    "factorial_table",
    "discover",
    "massive_activations",
    "recurrence_table",
    "familiarity_table",
    "recited",
    "image_grid",
    "image_mass",
    "visual_sinks",
    "visual_sinks_table",
    "importance",
    "sink_features",
    "sink_rate",
    "sink_rate_curve",
    "interval",
    "dose_table",
    "intervene",
    "intervention_table",
    "from_maps",
    "amplification",
    "eviction_by_layer",
    "mass_by_layer",
    "sink_mass",
    "uniform_importance",
    "uniform_mass",
    "value_drain",
    "collapse_table",
    "losses_from",
    "ppl",
    "ppl_table",
    "predictability_bins",
    "predictability_table",
    "depth_table",
    "gates_table",
    "purpose_sensitivity",
    "purposes",
    "spike_life",
    "spike_overlap",
    "head_gates",
    "reach",
    "reach_table",
    "save_head_gates",
    "rollout",
    "secondary_sinks",
    "spread_table",
    "tags_table",
    "mass_by_length",
    "sensitivity_table",
    "by_span",
    "span_mass",
    "span_table",
    "perplexity",
    "decompose",
    "decompose_by_layer",
    "Cost",
    "cost",
    "cost_table",
    "audit",
    "run_timing",
    "time_per_token",
    "timing_table",
    "SinkCache",
    "ScoredCache",
    "Conversation",
    "stream",
    "generate_record",
    "run_ablation",
    "EvictKeys",
    "SetMassive",
    "Intervention",
    "Repeat",
    "ReplaceTokens",
    "Shift",
    "Trial",
    "dose_response",
    "run_interventions",
    "predictability",
    "recall",
    "head_split",
    "sink_values",
    "sink_tags",
    "perturbation_spread",
    "Grid",
    "sweep",
    "sweep_table",
    "compare_cells",
    "list_cells",
    "sweep_losses",
    "recall_table",
    "key_value_recall",
    "needle_recall",
    "stream_recall",
    "accuracy_table",
    "Item",
    "Section",
    "Table",
    "ITEMS",
    "SECTIONS",
    "Report",
    "report",
    "Plan",
    "atlas",
    "compare_reports",
    "open_table",
    "explore",
]
