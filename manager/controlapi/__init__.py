"""The Control service: validation and reads."""
