"""The law of the optima, and its held-out check."""
