"""Supervised tasks, the one reconcile loop, deadlines."""
