"""What the operator touches: configuration, the local API, metrics, the command line."""
