"""Facts about a loaded model, found once, and what can be done with it."""
