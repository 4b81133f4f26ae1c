"""The cluster as Docker's clients see it: calls to the managers, bodies read into rows."""
