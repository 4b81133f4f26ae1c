"""Keys, certificates, join tokens and TLS credentials."""
