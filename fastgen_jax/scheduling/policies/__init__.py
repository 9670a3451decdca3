"""Ready-made policies, a file each."""
