"""The demo: in one command, from this machine's own files to a tuned model that answers."""
