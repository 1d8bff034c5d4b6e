"""A stopper on recorded curves: what it would have saved, and what it would have lost."""
