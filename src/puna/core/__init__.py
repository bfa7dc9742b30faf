"""Shared by all packages: errors, console, files, units and recipes. No torch."""
