"""Experiments: each runs a model and returns a record, of which `sinkscope.analysis` makes tables."""
