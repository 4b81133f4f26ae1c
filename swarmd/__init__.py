"""The node daemon: identity of the node, and supervision of its manager and worker processes."""
