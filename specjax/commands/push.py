"""`specjax push`: share a model or adapters on the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from specjax.commands.options_file import FromFile
from specjax.errors import ConfigError
from specjax.progress import say

if TYPE_CHECKING:
    from specjax.report.shared import Shared


@dataclass(frozen=True, kw_only=True)
class Push(FromFile):
    """Share a model, an adapter, or all adapters of a run on the Hugging Face hub, with a card.

    The card, README.md in the folder, is written unless it is there, and can be edited before the push.
    Neither spectra nor labels of stars are shared.
    """

    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """model folder, adapter folder, or the run folder of `specjax adapt`"""
    repository: Annotated[Positional[str], arg(metavar="OWNER/NAME")]
    """repository, which is made if it does not exist"""
    license: str
    """licence of what is shared, as the hub names it, such as mit or cc-by-4.0"""
    data: str = ""
    """sentences for the card on the spectra and labels that were used, such as what to cite"""
    base: str | None = None
    """OWNER/NAME of the base model of the adapters, if it is on the hub"""
    message: str = "Add the files that specjax wrote"
    """message of the commit"""
    private: bool = False
    """make the repository private"""
    dry_run: bool = False
    """write the card and list the files, without a network"""

    def run(self) -> None:
        """Write the card, list the files, and push them unless it is a dry run; print the address."""
        from specjax.checkpoints.hub import PREFIX, check_repository
        from specjax.report.shared import CARD, is_shared, local_paths, read_shared
        from specjax.services.hub import push_files

        repository = check_repository(self.repository)
        shared = read_shared(self.folder)
        card = self._card(shared, repository)
        files: dict[str, Path | bytes] = {CARD: card, **shared.files}
        for name, path in sorted({CARD: card, **shared.files}.items()):
            say(f"{path.stat().st_size:>12,} bytes  {name}")
        for text in local_paths(shared):
            say(f"note: config.json names a path of this machine: {text}")
        if self.dry_run:
            print(card)
            return
        commit = push_files(repository, files, replaces=is_shared, message=self.message, private=self.private)
        say(f"to load this version for good: {PREFIX}{repository}@{commit}")
        print(f"{PREFIX}{repository}")

    def _card(self, shared: "Shared", repository: str) -> Path:
        """Return the path of the card, written now unless the folder has one.

        Raises:
            ConfigError: the card in the folder describes something else, or names another licence.
        """
        from specjax.atomic import atomic_file
        from specjax.checkpoints.hub import check_repository
        from specjax.report.card import CardOptions, make_card
        from specjax.report.shared import CARD

        path = shared.folder / CARD
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            if not all(digest[:12] in text for digest in shared.digests):
                raise ConfigError(
                    f"{path} describes something else, for it lacks a digest of {shared.folder}: remove it"
                )
            found = re.search(r"^license: *[\"']?([^\"'\n]*)", text, re.MULTILINE)
            if found is None or found[1].strip() != self.license:
                raise ConfigError(f"{path} names another licence than {self.license}: edit or remove it")
            say(f"{path} is used as it is; remove it to have it written anew")
            return path
        options = CardOptions(
            repository=repository,
            license=self.license,
            data=self.data,
            base=None if self.base is None else check_repository(self.base),
        )
        with atomic_file(path) as temporary:
            temporary.write_text(make_card(shared, options), encoding="utf-8")
        return path
