"""What it costs to read, resample and write a series."""
