"""The normaliser slot: how scores become weights."""

from __future__ import annotations

from sinkscope.core.normalisers.base import Normaliser, Pointwise, VirtualKey, whole_rows
from sinkscope.core.normalisers.clipped import ClippedSoftmax
from sinkscope.core.normalisers.learned_sink import LearnedSink
from sinkscope.core.normalisers.relu import ReLU
from sinkscope.core.normalisers.sigmoid import Sigmoid
from sinkscope.core.normalisers.softmax import Softmax
from sinkscope.core.normalisers.softmax1 import Softmax1
from sinkscope.core.normalisers.sparsemax import Sparsemax

__all__ = [
    "ClippedSoftmax",
    "LearnedSink",
    "Normaliser",
    "Pointwise",
    "ReLU",
    "Sigmoid",
    "Softmax",
    "Softmax1",
    "Sparsemax",
    "VirtualKey",
    "whole_rows",
]
