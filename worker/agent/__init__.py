"""Walks assigned tasks up their ladder and reports."""
