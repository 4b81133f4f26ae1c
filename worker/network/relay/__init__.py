"""Published ports over IPv6 for containers that have IPv4 alone: a process that passes bytes on."""
