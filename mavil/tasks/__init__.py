"""Tasks: what one training step computes."""
