"""One training run: models, data, optimizers (torch only)."""
