"""`specjax show`: one picture of a spectrum."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from specjax.commands.paths import check_exist, check_model, check_sources
from specjax.commands.reading import Reading


@dataclass(frozen=True, kw_only=True)
class Show(Reading):
    """Draw one spectrum, to check it before its labels are trusted.

    The picture shows the flux as read with its errors, continuum and masked pixels; the normalised flux on
    the grid of the model with the model's reconstruction; their difference; and the labels with errors and
    flag.
    """

    spectrum: Annotated[Positional[Path], arg(metavar="SPECTRUM")]
    """file with the spectrum, in any supported format"""
    out: Annotated[Path, arg(aliases=("-o",))] = Path("spectrum.png")
    """picture to write; a .png and a .pdf are written"""
    id: str | None = None
    """id of the spectrum, if the file holds several"""
    row: int | None = None
    """or its number in the file, from 0"""
    adapter: UseAppendAction[tuple[Path, ...]] = ()
    """adapter folder whose label is shown, or a folder that holds one per label; may be given several times;
    without one, the model as it is predicts all its labels"""
    head: Literal["mlp1", "mlp2"] | None = None
    """head of the model that predicts without an adapter, by default mlp2 if the model has it"""
    column: bool = False
    """fit the picture into one column of a journal (88 mm) instead of two (180 mm)"""

    def run(self) -> None:
        """Draw the picture and print the paths of both files."""
        check_sources([self.spectrum], self.out)
        check_exist(adapter=self.adapter)
        check_model(self.model)
        from specjax.cache import use_compilation_cache

        use_compilation_cache()
        from specjax.pipeline.show import show_spectrum

        for path in show_spectrum(
            spectrum=self.spectrum,
            out=self.out,
            adapter=self.adapter,
            head=self.head,
            id=self.id,
            row=self.row,
            column=self.column,
            **self.reading(),
        ):
            print(path)
