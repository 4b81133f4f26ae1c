"""Immutable rows of the store."""
