"""Logs of jobs: one file per shard job, the lines of a study together."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrmill.errors import public_words

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to(path: str | Path) -> None:
    """Send this process's log, warnings and uncaught errors to a file in the work tree."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=path, filemode="w", level=logging.INFO, format=FORMAT, force=True)
    logging.captureWarnings(True)
    logging.getLogger("pydicom").setLevel(logging.ERROR)  # its warnings quote header values

    def log_uncaught(kind, error, trace) -> None:
        logging.getLogger("mrmill").critical("the job ends", exc_info=(kind, error, trace))
        # the console may be kept outside the work tree, and an error's text may hold a path
        print(f"mrmill: {public_words(error)}\n  More is in the job's log.", file=sys.stderr)

    sys.excepthook = log_uncaught


@contextmanager
def collected() -> Iterator[io.StringIO]:
    """Collect the log of one study instead of mixing it with that of others."""
    text = io.StringIO()
    root = logging.getLogger()
    handlers, handler = root.handlers[:], logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter(FORMAT))
    root.handlers[:] = [handler]
    try:
        yield text
    finally:
        root.handlers[:] = handlers


def write_collected(text: str) -> None:
    """Append a study's collected lines to the job's log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.stream.write(text)
            handler.flush()
