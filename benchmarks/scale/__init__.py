"""What a dataset of MR-RATE's size costs besides its images."""
