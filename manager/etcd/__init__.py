"""The store's other consensus: an etcd cluster that somebody already runs."""
