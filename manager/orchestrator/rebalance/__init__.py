"""Move tasks from fuller to emptier nodes."""
