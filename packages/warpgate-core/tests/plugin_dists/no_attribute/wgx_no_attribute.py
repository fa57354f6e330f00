"""Without the class that the entry point names."""
