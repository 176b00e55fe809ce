"""Stations: containers that a bench measures between, as elsewhere it does between namespaces."""
