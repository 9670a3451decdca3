"""The compiled step and the device memory it owns; the only place that calls jax.jit."""
