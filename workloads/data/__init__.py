"""Real data: text as tokens, and images."""
