"""Raft messages and snapshots between managers, over gRPC with mutual TLS."""
