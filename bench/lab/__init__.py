"""Topologies from one declarative description: in network namespaces, or simulated in one process."""
