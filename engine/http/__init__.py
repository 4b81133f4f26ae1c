"""The HTTP core: everything of the Engine API that is not about one resource."""
