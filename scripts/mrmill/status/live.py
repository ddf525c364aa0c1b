"""The status while it changes: a table that stays in place, or lines where there is no terminal."""

import json
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from mrmill.status import Status, StatusReader
from mrmill.status.text import status_line, status_table

#: Seconds between two looks, at least; never less than a look took.
PAUSE_S = 2.0


def watch(reader: StatusReader, batch: str, console: Console, as_json: bool) -> None:
    """Show the status until nothing runs any more, or Ctrl-C.

    As JSON it is one object per line.
    """

    def over(status: Status, pause_s: float) -> bool:
        if status.running:
            time.sleep(pause_s)
        return not status.running

    try:
        if as_json:
            _look_again(reader, batch, lambda s: print(json.dumps(s.as_dict()), flush=True), over)
        elif console.is_terminal:
            show_live(reader, batch, console, over)
        else:
            _look_again(reader, batch, _line_printer(console), over)
    except KeyboardInterrupt:
        pass


def show_live(
    reader: StatusReader, batch: str, console: Console, over: Callable[[Status, float], bool]
) -> None:
    """Keep a table on the terminal up to date.

    Parameters
    ----------
    over : callable
        Is given the status and the seconds until the next look; waits, and says whether to end.
    """
    with Live(console=console, refresh_per_second=1) as live:

        def show(status: Status) -> None:
            live.update(status_table(status, console.width))

        _look_again(reader, batch, show, over)


def _look_again(
    reader: StatusReader,
    batch: str,
    show: Callable[[Status], None],
    over: Callable[[Status, float], bool],
) -> None:
    while True:
        started = time.monotonic()
        status = reader.read(batch)
        show(status)
        if over(status, max(PAUSE_S, time.monotonic() - started)):
            return


def _line_printer(console: Console) -> Callable[[Status], None]:
    """Return what prints the status in one line whenever studies were decided."""
    shown: tuple[int, ...] = ()

    def show(status: Status) -> None:
        nonlocal shown
        decided = tuple(row.decided for row in status.totals)
        if decided != shown or not status.running:
            shown = decided
            console.print(status_line(status), highlight=False, markup=False, soft_wrap=True)

    return show
