"""The library behind every rule and command of mrmill; it knows nothing of Snakemake."""

__version__ = "0.1.0"
