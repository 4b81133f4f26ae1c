"""One round of all planners: from what changed to one transaction."""
