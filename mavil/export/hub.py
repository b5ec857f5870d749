"""Exported folders on the Hugging Face Hub: up and down, and a mix-in with the Hub's own method names.

Only the files of an export travel. What comes down is checked like any folder (:func:`mavil.export.folder.read_export`): sizes,
checksums, no pickle.
"""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from mavil.export.card import card_of
from mavil.export.folder import CARD, CONFIG, WEIGHTS, read_export, write_export
from mavil.export.parts import Exported
from mavil.structs import UserError

FILES = (WEIGHTS, CONFIG, CARD)


def check_repository(repository: str) -> None:
    """Refuse what cannot be a repository's id.

    Raises:
        UserError: it is not ``owner/name``.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no id on the Hub, owner/name: {' '.join(str(error).split())}") from None
    if repository.count("/") != 1:
        raise UserError(f"{repository!r} is no id on the Hub: write owner/name")


def push_folder(folder: str | Path, repository: str, private: bool = False, **options: Any) -> str:
    """Upload an exported folder, whole and checked, in one commit; return the commit's address.

    Args:
        folder: of ``mavil export``; files of other formats in it travel too.
        repository: ``owner/name``; it is made if it is not there.
        private: of a repository that is made now.
        options: further ones of ``HfApi.upload_folder``, e.g. ``commit_message``, ``create_pr``.

    Raises:
        UserError: not an export, nobody is logged in, or the Hub refuses or cannot be reached.
    """
    check_repository(repository)
    read_export(folder)
    with _told(repository, "uploaded to"):
        api = HfApi()
        # Without the word, an organisation's own default stands.
        api.create_repo(repo_id=repository, private=True if private else None, exist_ok=True)
        options = {"commit_message": "Export of mavil"} | options
        # Hidden files, and whatever a person keeps there that may hold a pickle, stay here.
        ignored = [".*", "*.pth", "*.pt", "*.bin", "*.ckpt", "*.pkl"]
        return str(api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=ignored, **options))


def fetch_folder(repository: str, revision: str | None = None, **options: Any) -> Path:
    """Bring an export from the Hub, or from its cache on this machine, and return its folder; nothing of it is read yet.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit.
        options: ``cache_dir``, ``force_download``, ``local_files_only``, ``token`` of ``snapshot_download``.

    Raises:
        UserError: no such repository or revision, or it cannot be reached.
    """
    check_repository(repository)
    with _told(repository, "fetched from"):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES), **options))


class HubMixin(ModelHubMixin):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` through exported folders, for :class:`mavil.Embedder`.

    Of the Hub's class they are overridden whole: it deletes a ``config.json`` that is there before it writes, and hands every
    entry of one to the constructor.
    """

    @abstractmethod
    def exported(self) -> Exported:
        """What leaves: recipe, parts, and what is known of them; for the class that uses this one to give."""

    def save_pretrained(self, save_directory: str | Path, **named: Any) -> str | None:
        """Write an exported folder; an earlier export there is replaced, anything else refused.

        Args:
            save_directory: the folder.
            named: ``push_to_hub=True`` uploads it too, as ``repo_id`` or under the folder's name, with the further arguments
                of :meth:`push_to_hub`; the Hub's ``config`` and ``model_card_kwargs`` are not used, the export has its own.

        Raises:
            UserError: as :func:`mavil.export.folder.write_export` and :meth:`push_to_hub`.
        """
        pushes, repository = named.pop("push_to_hub", False), named.pop("repo_id", None)
        for unused in ("config", "model_card_kwargs"):
            named.pop(unused, None)
        exported = self.exported()
        write_export(
            save_directory,
            exported,
            card_of(exported, repository or Path(save_directory).resolve().name),
            replaces=True,
        )
        return self.push_to_hub(repository or Path(save_directory).name, **named) if pushes else None

    def push_to_hub(self, repo_id: str, **named: Any) -> str:
        """Upload this model as an exported folder; return the commit's address; arguments as :func:`push_folder`."""
        exported = self.exported()
        for unused in ("config", "model_card_kwargs"):
            named.pop(unused, None)
        with tempfile.TemporaryDirectory() as folder:
            write_export(Path(folder) / "export", exported, card_of(exported, repo_id))
            return push_folder(Path(folder) / "export", repo_id, bool(named.pop("private", False)), **named)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **named: Any) -> Any:
        """The model of an exported folder, or of an id on the Hub; what is no option of the Hub's goes to ``mavil.load``.

        Raises:
            UserError: as :func:`fetch_folder` and :func:`mavil.export.folder.read_export`.
        """
        import mavil  # the package itself: what loads a folder stands above this room

        place = str(pretrained_model_name_or_path)
        hub = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        options = {name: named.pop(name) for name in hub if name in named}
        folder = Path(place) if os.path.isdir(place) else fetch_folder(place, **options)
        return mavil.load(folder, **named)


@contextmanager
def _told(repository: str, what: str) -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(
            f"{repository} cannot be {what} the Hub: nobody is logged in here; run: hf auth login"
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{repository} cannot be {what} the Hub: it cannot be reached, and nothing of it is kept here; name a folder"
        ) from None
    except UserError:
        raise
    except Exception as error:
        # The Hub's library speaks through httpx, before its version 1 through requests; either may be missing here.
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, (HfHubHTTPError, OSError, ValueError)) and library not in ("httpx", "requests"):
            raise
        first = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise UserError(f"{repository} cannot be {what} the Hub: {first}") from None
