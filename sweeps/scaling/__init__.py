"""How the loss falls with model size, steps and batch: the scaling laws of "Part I", as a pipeline of six steps."""
