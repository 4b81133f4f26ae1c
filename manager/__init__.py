"""The manager process: desired state of the cluster, and the planners that move reality to it."""
