"""The normaliser slot: how scores become weights."""

from __future__ import annotations

from sinkscope.normalisers.base import Normaliser, Pointwise, VirtualKey
from sinkscope.normalisers.pointwise import ClippedSoftmax, ReLU, Sigmoid
from sinkscope.normalisers.softmax import LearnedSink, Softmax, Softmax1
from sinkscope.normalisers.sparsemax import Sparsemax

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
]
