"""A virtual machine with a kernel of its own, whose control groups are version 2 alone."""
