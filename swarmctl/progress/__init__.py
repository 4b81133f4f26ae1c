"""Waiting for a service to converge: `core` judges, `loop` asks, `display` shows."""
