"""What is seen of a pretraining run: lines of progress, the same as JSON, and the curves as a plot.

The share of the peak is that of the largest matrix products that the device was measured to do.
"""

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specjax.atomic import atomic_file
from specjax.pretrain.board import FOLDER as BOARDS
from specjax.pretrain.board import Board
from specjax.progress import Say, duration
from specjax.report import style

METRICS, CURVES = "metrics.jsonl", "curves.png"
LOGS = "training"
"""Folder of both in a model folder."""


class Monitor:
    """Reports the scores of a stage; with a folder, also to METRICS and CURVES in it.

    Attributes:
        flops: floating-point operations of a step; None until they are counted, NaN if they are not known.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        rows: int,
        say: Say,
        folder: Path | None,
        *,
        peak: float | None = None,
        tensorboard: bool = False,
    ) -> None:
        """Start a report.

        Args:
            name: of the stage.
            steps: of the stage.
            rows: of a batch.
            say: takes lines of progress.
            folder: of the files; None writes none.
            peak: FLOP/s that the devices can reach together, to report the share that is used.
            tensorboard: write the scores for TensorBoard, too.
        """
        self.name, self.steps, self.rows, self.say = name, steps, rows, say
        self.folder, self.peak, self.tensorboard = folder, peak, tensorboard
        self.flops: float | None = None
        self.began = self._last = time.monotonic()
        self._step = self._first = 0
        self._board: Board | None = None

    def begin(self, step: int) -> None:
        """Start after a step; later reports of an interrupted run are removed from the file."""
        self.began = self._last = time.monotonic()
        self._step = self._first = step
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read(self.folder) if line["stage"] != self.name or line["step"] <= step]
        with atomic_file(self.folder / METRICS) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        if self.tensorboard:
            self._board = Board(self.folder, self.name, step)

    def report(self, step: int, scores: Mapping[str, float]) -> None:
        """Report the scores after a step."""
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._last, 1e-9)
        left = (self.steps - step) * (now - self.began) / max(step - self._first, 1)
        self._step, self._last = step, now
        speed = {"steps_per_s": rate, "spectra_per_s": rate * self.rows, "seconds_left": left}
        used = self._used(rate)
        if self.folder is not None:
            line = {"stage": self.name, "step": step, "seconds": round(now - self.began, 3)}
            values = _finite(speed | used) | _finite(scores)
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps(line | values) + "\n")
            if self._board is not None:
                self._board.write(step, values)
        report = "  ".join(f"{score} {value:.4g}" for score, value in scores.items())
        pace = f"{rate * self.rows:.0f} spectra/s  {duration(left)} left"
        if "share_of_peak" in used:
            pace = f"{used['share_of_peak']:.0%} of the peak  {pace}"
        self.say(f"{self.name} {step}/{self.steps}  {now - self.began:.0f} s  {report}  {pace}")

    def _used(self, rate: float) -> dict[str, float]:
        """Return TFLOP/s and the share of the peak for a number of steps per second, as far as known."""
        if self.flops is None or math.isnan(self.flops):
            return {}
        used = {"tflops_per_s": rate * self.flops / 1e12}
        return used | ({"share_of_peak": rate * self.flops / self.peak} if self.peak else {})

    def close(self) -> None:
        """Close the files that are open."""
        if self._board is not None:
            self._board.close()

    def draw(self) -> None:
        """Plot the curves of all stages so far."""
        if self.folder is not None:
            draw_curves(read(self.folder), self.folder / CURVES)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the reports in a folder; a last line that was cut off is left out."""
    path, lines = folder / METRICS, []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def keep(states: Path, folder: Path) -> None:
    """Copy the metrics and curves of a finished run from the folder of its states."""
    folder.mkdir(exist_ok=True)
    for name in (METRICS, CURVES):
        if (states / name).is_file():
            shutil.copyfile(states / name, folder / name)
    if (states / BOARDS).is_dir():
        shutil.copytree(states / BOARDS, folder / BOARDS, dirs_exist_ok=True)


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return scores for JSON, which has no NaN: None in its place."""
    return {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in scores.items()}


_COLUMNS = 3
_ABOUT = ("stage", "step", "seconds")
_SPEED = {*_ABOUT, "steps_per_s", "spectra_per_s", "seconds_left", "tflops_per_s", "share_of_peak"}


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """Plot every score of every stage against the step."""
    stages = dict.fromkeys(line["stage"] for line in lines)
    panels = [(stage, *panel) for stage in stages for panel in _panels(lines, stage).items()]
    if not panels:
        return
    rows = math.ceil(len(panels) / _COLUMNS)
    with style.paper_figure(style.PAGE, 1.75 * rows) as figure:
        axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (stage, title, names) in zip(axes, panels, strict=False):
            _panel(ax, [line for line in lines if line["stage"] == stage], names)
            ax.set_title(f"{stage}\n{title}", fontsize=style.SMALL)
        style.save_figure(figure, path, pdf=False)


def _panels(lines: list[dict[str, Any]], stage: str) -> dict[str, list[str]]:
    """Group the scores of a stage: a score and the same on held-out stars share a panel."""
    names = dict.fromkeys(
        name for line in lines if line["stage"] == stage for name in line if name not in _SPEED
    )
    panels: dict[str, list[str]] = {}
    for name in names:
        panels.setdefault(name.removeprefix("held-out "), []).append(name)
    return panels


def _panel(ax: Any, lines: list[dict[str, Any]], names: list[str]) -> None:
    for name in names:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        held_out = name.startswith("held-out ")
        label = "held out" if held_out else "training"
        colour = style.BLUE if held_out else style.VERMILION
        steps_and_values = zip(*points, strict=True) if points else ([], [])
        ax.plot(*steps_and_values, "--" if held_out else "-", color=colour, label=label)
    values = [line[name] for name in names for line in lines if line.get(name) is not None]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        ax.set_yscale("log")
    ax.set_xlabel("step")
    if len(names) > 1:
        ax.legend()
