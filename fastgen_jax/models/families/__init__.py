"""Model families: how their descriptions are read, and where their weights lie."""
