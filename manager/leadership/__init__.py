"""What runs only on the leader, and how calls find it."""
