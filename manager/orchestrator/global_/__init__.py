"""Services and jobs on every node."""
