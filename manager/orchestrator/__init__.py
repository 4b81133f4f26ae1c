"""Planners that create, restart, update and reap tasks."""
