"""Tests of the image store that need no kernel features."""
