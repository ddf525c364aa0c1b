"""What a run costs: measured while it runs, summed up afterwards."""

from mrmill.profile.attempts import read_attempts

__all__ = ["read_attempts"]
