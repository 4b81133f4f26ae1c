"""Chooses a node for each task, or says why none fits."""
