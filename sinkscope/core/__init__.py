"""The exact core: attention with its log-sum-exp, the probes, and the scope that carries them into a model."""
