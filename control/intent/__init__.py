"""What the tables must hold: desired state (pure) and the plan that reaches it (ordered, idempotent)."""
