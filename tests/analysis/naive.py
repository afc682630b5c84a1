"""The definitions, written out as loops over float64 maps: slow, plain, and sharing no code with the package.

`maps` is a list with one nested [layer][head][query][key] array per sequence; positions count from 0.
"""

from __future__ import annotations

import math


def mass_on_first(row, first):
    return sum(float(row[j]) for j in range(first))


def sink_mass(maps, layer, head, first):
    """Mean over sequences of the mean over queries i >= first of the mass on keys < first."""
    per_sequence = []
    for one in maps:
        queries = [mass_on_first(one[layer][head][i], first) for i in range(first, len(one[layer][head]))]
        if queries:
            per_sequence.append(sum(queries) / len(queries))
    return sum(per_sequence) / len(per_sequence)


def alpha(matrix, key, causal=True):
    """Gu et al. 2024: 1 / (T - k + 1) * sum_{i = k}^{T} A[i, k], here with k = key + 1."""
    T, k = len(matrix), key + 1
    if not causal:
        return sum(float(matrix[i][key]) for i in range(T)) / T
    return sum(float(matrix[i - 1][k - 1]) for i in range(k, T + 1)) / (T - k + 1)


def sink_rate(maps, epsilon, key=0, causal=True):
    """Gu et al. 2024: the mean over sequences, layers and heads of 1(alpha > epsilon)."""
    above = total = 0
    for one in maps:
        for layer in one:
            for matrix in layer:
                if key < len(matrix):
                    total += 1
                    above += alpha(matrix, key, causal) > epsilon
    return above / total


def prefix(maps, length):
    """The maps of the first `length` tokens; sequences that are shorter are left out."""
    return [
        [[[list(row[:length]) for row in matrix[:length]] for matrix in layer] for layer in one]
        for one in maps
        if len(one[0][0]) >= length
    ]


def entropy(row):
    return -sum(float(p) * math.log(float(p)) for p in row if p > 0)


def received(matrix, key):
    return sum(float(row[key]) for row in matrix)


def distance_mass(matrix, distance, both_sides):
    T, total = len(matrix), 0.0
    for i in range(T):
        for j in range(T):
            if i - j == distance or (both_sides and j - i == distance):
                total += float(matrix[i][j])
    return total


def uniform_matrix(T, causal=True):
    if not causal:
        return [[1.0 / T] * T for _ in range(T)]
    return [[1.0 / (i + 1) if j <= i else 0.0 for j in range(T)] for i in range(T)]


def harmonic(n):
    return sum(1.0 / i for i in range(1, n + 1))
