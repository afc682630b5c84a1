"""Interventions: what happens to a model when its sinks are taken away, and the controls beside them."""
