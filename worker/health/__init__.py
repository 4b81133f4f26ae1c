"""Health of containers: how they are checked, what the checks say, who runs them."""
