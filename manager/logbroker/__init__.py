"""Connects log readers with the nodes that hold the logs."""
