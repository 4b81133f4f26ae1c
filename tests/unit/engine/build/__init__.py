"""The classic builder's pure parts."""
