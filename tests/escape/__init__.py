"""Ways out of a container that once worked somewhere, tried here: each must be refused."""
