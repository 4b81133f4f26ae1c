"""The Proposer: from transaction to durable entry to applied state."""
