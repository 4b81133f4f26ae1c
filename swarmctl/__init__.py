"""The command line of Shoal."""
