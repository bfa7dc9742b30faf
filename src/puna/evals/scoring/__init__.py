"""Comparing answers: mathematical expressions, numbers and translations."""
