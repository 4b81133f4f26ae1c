"""Replace tasks that ended or lost their node, by the restart policy."""
