"""Measurements of the engine, run by hand: ``python -m benchmarks.NAME --help``."""
