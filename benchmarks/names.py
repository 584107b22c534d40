"""Descriptions of the rows from which targets are measured: `targets` finds them by these."""

CORE, RAW, PREPARED = "compiled core alone", "raw files", "prepared file"
LONGEST_COMPILATION = "longest compilation of the second adaptation"


def seeds(count: int) -> str:
    """Return a number of seeds as text."""
    return "1 seed" if count == 1 else f"{count} seeds"


def spectra(count: int) -> str:
    """Return a number of spectra as text."""
    return "1 spectrum" if count == 1 else f"{count:,} spectra"


def embedding(count: int, kind: str) -> str:
    """Describe an embedding."""
    return f"embed {spectra(count)}, {kind}"


def step(groups: str, batch: int, number: int) -> str:
    """Describe a training step of a number of seeds."""
    return f"{groups} step, {spectra(batch)}, {seeds(number)}"


def head_run(stars: int, steps: int, number: int) -> str:
    """Describe a LoRA4 run of a number of seeds."""
    return f"LoRA4 run, {stars} stars, {steps} steps, {seeds(number)}"


def six_configurations(preset: str, number: int) -> str:
    """Describe the table of all configurations."""
    return f"six configurations, {preset}, {seeds(number)}"


def survey(kind: str, count: int) -> str:
    """Describe the prediction of a survey from one kind of files."""
    return f"{kind}, {spectra(count)}"


def host_side(count: int) -> str:
    """Describe the host side of a prepared file."""
    return f"host side of a prepared file, {spectra(count)}"


def predict_process(count: int, cache: str, number: int) -> str:
    """Describe `specjax predict` in a new process."""
    return f"specjax predict, {spectra(count)}, {cache} cache, mini, lora4 of {seeds(number)}"
