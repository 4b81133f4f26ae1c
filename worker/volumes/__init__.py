"""Volumes of this node: named directories that outlive containers (docs/design/engine.md)."""
