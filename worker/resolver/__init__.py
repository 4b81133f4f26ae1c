"""The name server of containers, one process per node (docs/design/local-networks.md)."""
