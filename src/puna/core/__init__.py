"""What every room stands on: errors, console, files, units and recipes. No torch here."""
