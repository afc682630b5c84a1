"""Writing text without end on one bounded cache."""
