"""The certificate authority of the cluster."""
