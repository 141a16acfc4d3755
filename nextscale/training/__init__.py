"""Training: one loop, two stages."""
