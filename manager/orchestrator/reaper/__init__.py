"""Delete what nobody needs any more: removed tasks, old history, removed services."""
