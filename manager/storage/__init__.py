"""Write-ahead log and snapshots: bytes on disk that survive a power cut, or a refusal to start.

Nothing here knows tables or messages: an entry is (index, term, kind, data). `wal.Wal` is the log,
`snapshot_dir.SnapshotDir` the snapshots, `driver.AsyncWal` the group commit. Formats:
docs/formats.md; reasons: docs/design/storage.md.
"""
