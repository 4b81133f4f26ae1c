"""Compose files: from texts to the spec of a stack. Reads files only through what it is given.

`tree` reads YAML with the line of everything, `interpolate` puts variables in, `schema` judges by
the official schema, `normal` writes short forms out, `merge` lays several files over each other,
`convert*` makes specs. `project` is the way through all of them.
"""
