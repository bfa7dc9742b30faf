"""The demo: the whole way in one command, from this machine's own files to a tuned model that answers."""
