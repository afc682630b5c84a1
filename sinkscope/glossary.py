"""The words that a newcomer meets first, each defined once: explorer, page and report all show these."""

from __future__ import annotations

DEFINITIONS = {
    "query and key": "a token that reads, and a token that it may look at. A head gives each query shares of attention "
    "over its keys, which sum to one under softmax",
    "sink": "a token, mostly the first of the text, that many heads give much of their attention to, whatever it says",
    "mass": "the share of their attention that queries give to chosen keys, as a mean over the queries; for sinks, to "
    "the first tokens",
    "rate": "the share of heads in which a token is a sink: its importance α, the mean attention it is given by all "
    "queries that see it, is above a threshold ε",
    "null": "what the same figure would be if every query spread its attention evenly over the keys it sees: only what "
    "is above it says something about the model",
    "policy": "which earlier tokens (keys) a token (query) may attend to, and so which ones a cache keeps",
}
