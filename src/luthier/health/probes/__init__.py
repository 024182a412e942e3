"""Probes: hooks and factor algebra that turn a model and a few rows into the numbers of `health.facts`."""
