# Made by `make stub` from __init__.py. Do not edit it.

from sinkscope.analysis.lab import emergence_summary as emergence_summary
from sinkscope.analysis.lab import emergence_table as emergence_table
from sinkscope.analysis.lab import head_masses as head_masses
from sinkscope.analysis.lab import language_table as language_table
from sinkscope.analysis.lab import language_verdict as language_verdict
from sinkscope.lab.bigram import bigram_backcopy as bigram_backcopy
from sinkscope.lab.decoder import ARMS as ARMS
from sinkscope.lab.decoder import Arm as Arm
from sinkscope.lab.language import language_model as language_model

__all__ = [
    "ARMS",
    "Arm",
    "bigram_backcopy",
    "language_model",
    "emergence_summary",
    "emergence_table",
    "head_masses",
    "language_table",
    "language_verdict",
]
