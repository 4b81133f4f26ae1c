"""Image store on a real kernel."""
