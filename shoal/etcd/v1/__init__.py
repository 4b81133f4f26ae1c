"""Generated from proto/shoal/etcd: the messages of etcd's API that we speak. Never edited."""
