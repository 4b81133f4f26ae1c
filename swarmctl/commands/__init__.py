"""The commands, one module per group; thin: options in, client calls, rendered text out."""
