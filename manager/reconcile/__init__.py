"""One round of decisions: orchestrator, allocator and scheduler over one view."""
