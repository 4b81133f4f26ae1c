"""Tables, indexes, transactions and watch."""
