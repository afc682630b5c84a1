"""Attention as tensors: with its log-sum-exp, under evictions and normalisers, never a T x T matrix."""
