"""Files of containers on a real kernel."""
