"""Whole clusters on one machine: every node a real daemon in its own network namespace."""
