"""The decoder, configured by data, and the readers of its checkpoints."""
