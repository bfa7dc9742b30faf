"""The roof: one module a command. Each parses, calls one function and prints; none holds logic."""
