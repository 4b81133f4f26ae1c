"""What a container is given here, and what Docker gives it: the same program looks from inside."""
