"""Nothing a client asks for is lost while the cluster changes beneath it."""
