"""Control programs: who is there, and what the tables must therefore hold."""
