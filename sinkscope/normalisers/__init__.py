"""The normaliser slot: how scores become weights."""

from sinkscope.normalisers.base import Normaliser, Pointwise, VirtualKey
from sinkscope.normalisers.quick import ClippedSoftmax, LearnedSink, ReLU, Sigmoid, Softmax, Softmax1
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
