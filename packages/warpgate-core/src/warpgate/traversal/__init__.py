"""From a peer's address to a proven pipe: plan, race, attempts, report."""
