"""Comparing backends: weights at run time, health, experiments, mirrored pairs."""
