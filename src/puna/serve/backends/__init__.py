"""What computes answers: Puna's own engine (`native`), or another server (`upstream`)."""
