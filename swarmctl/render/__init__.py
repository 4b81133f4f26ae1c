"""Model rows to text: Docker's JSON shapes, tables, times. Pure; `now` is an argument."""
