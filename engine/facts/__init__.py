"""What this node is and can do, for `/version` and `/info`."""
