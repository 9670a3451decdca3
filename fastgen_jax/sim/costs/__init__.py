"""How long a step takes: from a table, from a plan of a GPU, or fitted to a recorded run."""
