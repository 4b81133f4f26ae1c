"""What keeps a manager's state: the log that managers replicate among each other, or an etcd."""
