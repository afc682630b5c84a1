"""The laboratory: small models trained from scratch, to see what makes a sink grow.

>>> record = lab.bigram_backcopy("softmax", seeds=0, steps=2, length=12)  # lab.bigram_backcopy(): all there is
>>> table = lab.emergence_table(record)

Reading a saved record needs no torch, so what trains is imported when it is asked for.
"""

from __future__ import annotations

from sinkscope.lazy import lazily

_HOMES = {
    "lab.decoder": "ARMS Arm",
    "lab.bigram": "bigram_backcopy",
    "lab.language": "language_model",
    "analysis.lab": "emergence_summary emergence_table head_masses language_table language_verdict",
}
_HOME_OF = {name: f"sinkscope.{home}" for home, names in _HOMES.items() for name in names.split()}

__all__ = [*_HOME_OF]

__getattr__, __dir__ = lazily("sinkscope.lab", _HOME_OF)
