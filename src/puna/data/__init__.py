"""From files to a corpus directory, and from a corpus directory to batches. No torch here."""
