"""Data plane of the node."""
