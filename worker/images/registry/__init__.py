"""Registries: the distribution protocol, credentials, progress (docs/design/engine.md)."""
