"""The worker process: runs the tasks a manager assigns to this node."""
