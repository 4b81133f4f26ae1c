"""Sessions with agents: assignments out, statuses in."""
