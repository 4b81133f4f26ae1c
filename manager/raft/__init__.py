"""The Raft core: messages and ticks in, messages and entries to keep out. No I/O, no clock.

`node.Raft` is the whole surface; what its user owes it stands in `ready.Ready`. The same state and
the same input give the same output. Semantics of etcd-io/raft; reasons: docs/design/raft.md.
"""
