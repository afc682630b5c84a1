"""How many sinks a model needs, and what they may be."""
