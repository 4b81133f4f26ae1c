"""Measurements of Shoal against its peers. How to read and run them: README.md."""
