"""The docker command line, as it behaves against dockerd and as it does here."""
