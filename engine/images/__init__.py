"""Images in Docker's words: lists, inspections, filters, prunes, progress."""
