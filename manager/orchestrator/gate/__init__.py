"""What services that depend on others wait for."""
