"""Decoders as flax nnx modules, configured by data, and the readers of their checkpoints."""
