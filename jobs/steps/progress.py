"""Progress for people: a bar on a terminal, a line every 10 s in a log."""

import sys
import time
from collections import Counter

from tqdm import tqdm

from cluster.words import plural

LOG_INTERVAL = 10.0  # seconds between lines without a terminal


class Progress:
    """The number of finished images, the speed, and the estimated time left."""

    def __init__(self, name: str, total: int, already_done: int = 0) -> None:
        self._name, self._total, self._done = name, total, already_done
        self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None  # time of the first images; the speed leaves out the start
        self._bar = tqdm(total=total, initial=already_done, desc=name, unit="image") if sys.stderr.isatty() else None

    def advance(self, num_images: int) -> None:
        """Counts finished images; skipped images count too."""
        self._done += num_images
        now = time.monotonic()
        if self._first is None:
            self._first = now, self._done
        if self._bar is not None:
            self._bar.update(num_images)
        elif now - self._last_line >= LOG_INTERVAL:
            self._last_line = now
            print(f"{self._name}: {self._done:,} of {plural(self._total, 'image')}{self._pace(now)}", flush=True)

    def _pace(self, now: float) -> str:
        first_time, first_done = self._first or (now, self._done)
        if self._done == first_done:
            return ""
        rate = (self._done - first_done) / (now - first_time)
        return f", {rate:.2f} images/s, about {duration((self._total - self._done) / rate)} left"

    def close(self) -> None:
        """Ends the bar; it stays on the screen."""
        if self._bar is not None:
            self._bar.close()


def summary_line(name: str, done: int, skipped: Counter[str], left: int, seconds: float) -> str:
    """The last line of a job, as 'maps: 1,178 images done, 2 skipped (1 empty file; 1 missing), 0 left, 3 min 10 s.'"""
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in skipped.most_common(5))
    more = len(skipped) - 5
    reasons += f"; {plural(more, 'more kind')}" if more > 0 else ""
    skipped_part = f"{sum(skipped.values()):,} skipped" + (f" ({reasons})" if reasons else "")
    return f"{name}: {plural(done, 'image')} done, {skipped_part}, {left:,} left, {duration(seconds)}."


def duration(seconds: float) -> str:
    """A time in words: '48 s', '3 min 10 s', '2 h 05 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def size(num_bytes: float) -> str:
    """A size in words: '0.4 KB', '3.1 MB', '2.4 GB'."""
    unit, divisor = ("GB", 1e9) if num_bytes >= 1e9 else ("MB", 1e6) if num_bytes >= 1e6 else ("KB", 1e3)
    return f"{num_bytes / divisor:,.1f} {unit}"
