"""Where documents come from: files, folders, the standard library, the Hub."""
