"""Reading and writing inside a container's root, from a process of its own."""
