"""The best LR of a cell, with its interval, and what cells tell each other."""
