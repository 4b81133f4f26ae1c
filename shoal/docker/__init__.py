"""The cluster's objects in the shapes of Docker's API: for the API itself and for `--format`."""
