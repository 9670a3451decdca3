"""Where keys and values live: blocks, who holds them, and which are findable by content."""
