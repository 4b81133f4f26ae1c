"""Data plane of the node: ingress mesh, published ports, task links, all in the kernel's tables."""
