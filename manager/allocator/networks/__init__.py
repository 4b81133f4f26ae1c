"""Numbers and subnets for overlay networks, addresses on them for services and tasks."""
