"""How far a run is, in spectra and files."""

from collections import Counter
from collections.abc import Sequence

from specjax.plurals import counted
from specjax.prepare.plan import Plan
from specjax.progress import Pace, Say, duration


class Progress:
    """Progress of a run, in spectra and files, with an estimate of the time left from the bytes."""

    def __init__(self, plan: Plan, todo: Sequence[int], say: Say) -> None:
        self.plan, self.say, self.pace = plan, say, Pace()
        self.chunks, self.spectra, self.bytes = len(todo), 0, 0
        self.left = Counter(source.path for number in todo for source in plan.chunks[number])
        self.files, self.read = len(self.left), 0
        self.size = max(sum(source.size for number in todo for source in plan.chunks[number]), 1)
        rows = [spectra_in(plan, number) for number in todo]
        self.total = None if None in rows else sum(filter(None, rows))

    def __call__(self, number: int, count: int) -> None:
        """Count a finished chunk, and say how far the run is from time to time and at its end."""
        chunk = self.plan.chunks[number]
        for source in chunk:
            self.left[source.path] -= 1
            self.read += not self.left[source.path]
        self.chunks -= 1
        self.spectra += count
        self.bytes += sum(source.size for source in chunk)
        if self.chunks and not self.pace.due():
            return
        seconds = max(self.pace.elapsed, 1e-3)
        total = "" if self.total is None else f" of {self.total:,}"
        noun = counted(self.total or self.spectra, "spectrum", "spectra").split()[-1]
        text = f"{self.spectra:,}{total} {noun}, {self.read:,} of {counted(self.files, 'file')}"
        text += f", {self.spectra / seconds:,.0f} spectra/s" if self.spectra else ""
        if self.chunks:
            text += f", {duration(seconds * (self.size / max(self.bytes, 1) - 1))} left"
        self.say(text)


def spectra_in(plan: Plan, number: int) -> int | None:
    """Return the number of spectra of a chunk, None if only its files know."""
    rows = [source.rows for source in plan.chunks[number]]
    return sum(last - first for first, last in filter(None, rows)) if all(rows) else None
