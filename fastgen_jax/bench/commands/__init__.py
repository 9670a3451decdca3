"""``fastgen bench`` on the command line."""
