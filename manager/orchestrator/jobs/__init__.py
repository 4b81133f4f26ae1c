"""Services whose tasks run to completion."""
