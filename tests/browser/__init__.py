"""Real browsers against a real node: what people see and hear."""
