"""What the constants rest on: published runs and their fit, validation, and measurements of the local device."""
