"""The code that runs in the process of untrusted code, behind the walls. Standard library only."""
