"""The bench stages and measures: topologies in namespaces, scenarios, records."""
