"""Have tasks go on serving until others of their slots run elsewhere."""
