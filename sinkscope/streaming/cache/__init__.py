"""The sink + window cache for `generate()`."""
