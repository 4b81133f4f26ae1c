"""Containers of the engine: what was asked for, what became of it (docs/design/engine.md)."""
