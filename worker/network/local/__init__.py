"""Networks of this node alone: bridges, published ports, names (docs/design/engine.md)."""
