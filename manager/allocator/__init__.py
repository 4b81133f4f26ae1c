"""Gives out ports, node subnets and addresses."""
