"""Overlay networks, the part of a node (docs/design/overlay.md)."""
