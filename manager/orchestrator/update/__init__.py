"""Rolling updates and rollbacks."""
