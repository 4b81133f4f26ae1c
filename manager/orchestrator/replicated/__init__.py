"""Replicated services: as many slots as the spec asks for."""
