"""Content-addressed image store."""
