"""The scope: the one way into a model, and out again."""
