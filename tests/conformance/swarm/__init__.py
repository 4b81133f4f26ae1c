"""The docker command line on swarms, as it behaves against dockerd and as it does here."""
