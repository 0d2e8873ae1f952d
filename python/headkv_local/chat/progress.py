"""The progress bar while a long prompt is read: standard error, terminals only."""

from __future__ import annotations

from typing import NoReturn

from tqdm import tqdm

from headkv_local.chat.console import Console

MIN_TOKENS = 256  # the bar for a shorter prompt waits for the first tick: most are read before
_FORMAT = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {rate_fmt} {elapsed}<{remaining}"
_NARROW = 60  # with fewer columns the rate would push the time left out of the line
_NARROW_FORMAT = _FORMAT.replace("{rate_fmt} ", "")


class PrefillBar:
    """Tokens, rate and time left of one prefill. Drawn at the first report, gone after the last one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: tqdm[NoReturn] | None = None
        self._done = self._total = 0

    def __enter__(self) -> PrefillBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` prompt tokens are read."""
        self._done, self._total = done, total
        if total >= MIN_TOKENS or self._bar is not None:
            self._draw()

    def tick(self) -> None:
        """Redraw, for the clock goes on while a batch is computed."""
        if self._total:
            self._draw()
            if self._bar is not None:
                self._bar.refresh()

    def _draw(self) -> None:
        done, total = self._done, self._total
        if not self._console.err_tty or done >= total:
            self.close()
            return
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                file=self._console.err,
                unit="tok",
                leave=False,
                ncols=self._columns(),
                bar_format=self._format(),
                mininterval=0,
                miniters=1,
            )
        self._bar.ncols, self._bar.bar_format = self._columns(), self._format()
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._total = 0
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._console.erase_line()

    def _format(self) -> str:
        return _FORMAT if self._columns() >= _NARROW else _NARROW_FORMAT

    def _columns(self) -> int:
        # Room for the ^C that the terminal itself writes after the bar, lest it break the line.
        return max((self._console.width or 0) - 3, 10)
