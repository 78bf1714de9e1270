"""The jobs, and the only place that knows Ray Train, MLflow, configuration and the command line."""
