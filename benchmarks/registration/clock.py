"""CPU time by part."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the CPU seconds of this process, all threads together, under names.

    Attributes
    ----------
    cpu_s : dict
        Seconds by part.
    """

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens in the block."""
        start = time.process_time()
        yield
        self.cpu_s[name] += time.process_time() - start
