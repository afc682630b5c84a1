"""The normaliser slot: how scores become weights."""

from sinkscope.normalisers.base import (
    ClippedSoftmax,
    LearnedSink,
    Normaliser,
    Pointwise,
    ReLU,
    Sigmoid,
    Softmax,
    Softmax1,
    VirtualKey,
)
from sinkscope.normalisers.softpick import Softpick
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
    "Softpick",
    "Sparsemax",
    "VirtualKey",
]
