"""Runs containers."""
