"""Where and when: Ray, Optuna, MLflow, configuration and the command line."""
