"""Metrics over records: they read records and never need the model, nor torch."""
