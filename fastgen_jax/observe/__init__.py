"""Looking at an engine: what it decided and why, as plain data, text and pictures."""
