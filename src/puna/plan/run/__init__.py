"""A whole run: days, failures, energy and cost of a layout; fleets, budgets and simulated years."""
