"""Shared kernel of Shoal: what the daemons and the command line have in common.

Nothing here knows of a manager, a worker or a command. If two of those need the same thing it
moves down into this package; they never import each other.
"""
