"""What a run would need on a slice that nobody has paid for yet: memory, seconds, cost, and which mesh suits it best."""
