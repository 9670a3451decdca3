"""Other engines, each run by an interpreter of its own; nothing here imports fastgen_jax."""
