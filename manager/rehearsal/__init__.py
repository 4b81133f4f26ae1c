"""What changes would do: the planners at work on a copy of the store, with agents that obey."""
