"""Docker Engine REST API over the worker and the control API.

Empty for now: the package holds its place in the layers, so that the API arrives without moving
anything.
"""
