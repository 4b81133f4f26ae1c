"""Write-ahead log and snapshots."""
