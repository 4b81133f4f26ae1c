"""Who is a manager: keeps node rows and the consensus group in step."""
