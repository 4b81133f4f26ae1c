"""Docker Engine REST API of one node, over the worker's packages. See docs/design/engine.md."""
