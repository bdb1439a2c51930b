"""The only code that touches the network: find files of a Hub repository, download, verify, cache; publish."""

import errno
import os
import shutil
from pathlib import Path
from typing import NoReturn, Protocol

from robustsim.errors import CorruptFileError, HubError, RepositoryError

_FALSE = ("", "0", "OFF", "NO", "FALSE")


class Repository(Protocol):
    """A place with files: a Hub repository or a folder."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def short_name(self) -> str:
        """What a card made from it is called."""

    def file(self, filename: str) -> Path | None:
        """A local copy of the file, verified; None where there is no such file."""

    def explain_absence(self, what: str) -> NoReturn:
        """Raise the error that tells why nothing usable was found."""


class Folder:
    """A folder as a repository."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = os.fspath(root)
        self.short_name = root.resolve().name

    def file(self, filename: str) -> Path | None:
        path = self.root / filename
        return path if path.is_file() else None

    def explain_absence(self, what: str) -> NoReturn:
        there = sorted(entry.name for entry in self.root.iterdir())
        shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") if there else "nothing"
        raise RepositoryError(f"the folder {self.name!r} holds no {what}; it holds {shown}")


class HubRepository:
    """A model repository of the Hub, its files downloaded through `huggingface_hub` when they are asked for.

    `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_HOME` and the rest of huggingface_hub's settings apply.
    """

    def __init__(
        self,
        repo: str,
        revision: str = "main",
        *,
        cache_dir: "str | os.PathLike[str] | None" = None,
        local_files_only: bool = False,
    ) -> None:
        self.repo, self.revision = repo, revision
        self.cache_dir = os.fspath(cache_dir) if cache_dir is not None else None
        self.local_files_only = local_files_only or _offline()
        self.name = self.short_name = repo if revision == "main" else f"{repo}@{revision}"

    def file(self, filename: str) -> Path | None:
        """A verified local copy, downloaded unless it is cached; None where the repository has no such file.

        Not being able to tell is an error, not None: a configuration that could not be read must not be taken for
        one that is not there.

        Raises:
            RepositoryError: unknown or gated repository, unknown revision.
            HubError: the download failed, or the file is not cached and the network is off.
            CorruptFileError: the content does not match the Hub's hash; it was removed from the cache.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            path = Path(
                hf_hub_download(
                    self.repo,
                    filename,
                    revision=self.revision,
                    cache_dir=self.cache_dir,
                    local_files_only=self.local_files_only,
                    endpoint=_endpoint(),
                    library_name="robustsim",
                )
            )
        except LocalEntryNotFoundError as error:
            if self._known_absent(filename):
                return None
            self._explain_unreachable(error, filename)
        except EntryNotFoundError:
            return None
        except Exception as error:
            # What a failing connection raises depends on huggingface_hub's version and its HTTP library.
            self._explain(error, filename)
        self._verify(path, f"{filename} of {self.name!r}")
        return path

    def explain_absence(self, what: str) -> NoReturn:
        raise RepositoryError(
            f"the repository {self.name!r} holds no {what}: robustsim reads its own layout, OpenCLIP's and timm's"
        )

    def _known_absent(self, filename: str) -> bool:
        """Whether the Hub has said before that this revision has no such file."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, filename, cache_dir=self.cache_dir, revision=self.revision)
        return found is _CACHED_NO_EXIST

    def _verify(self, path: Path, what: str) -> None:
        """Hold a cached file against the hash that the Hub gave for it, which is the name of its blob.

        A cache without links (Windows without developer mode) keeps no hash; there, the Hub is asked for it while the
        network is on, and offline only a card's checksum holds.

        Raises:
            CorruptFileError: they differ; the file is removed, so that the next try downloads it anew.
        """
        from robustsim.encoders.weights import git_blob, sha256

        # One step, not to the end: the blob may itself be a link into a store whose names are other hashes.
        blob = path.parent / os.readlink(path) if path.is_symlink() else path
        expected = blob.name if path.is_symlink() else self._etag(path.name)
        if expected is None or len(expected) not in (40, 64):
            return
        found = sha256(blob) if len(expected) == 64 else git_blob(blob)
        if found != expected:
            for link in (Path(os.path.realpath(blob)), blob, path):
                link.unlink(missing_ok=True)
            raise CorruptFileError(
                f"{what} is damaged: its hash is {found[:12]}..., the Hub says {expected[:12]}.... "
                "It was removed from the cache; run again to download it anew"
            )

    def _etag(self, filename: str) -> str | None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        if self.local_files_only:
            return None
        try:
            url = hf_hub_url(self.repo, filename, revision=self.revision, endpoint=_endpoint())
            return get_hf_file_metadata(url).etag
        except Exception:  # the file is here; that the Hub cannot be asked at this moment is no reason to refuse it
            return None

    def _explain_unreachable(self, error: Exception, filename: str) -> NoReturn:
        what = f"{filename} of {self.name!r}"
        place = self.cache_dir or "the cache (`robustsim info` says where)"
        if self.local_files_only:
            raise HubError(
                f"{what} is not in {place}, and the network is off (local_files_only or HF_HUB_OFFLINE): "
                "load it once with the network, or use the bundled 'lite'"
            ) from error
        reason = " ".join(str(error.__cause__ or "no connection").split())
        raise HubError(
            f"{_endpoint() or 'the Hub'} cannot be reached ({reason}), and {what} is not in {place}: check the "
            "connection and HF_ENDPOINT, or use the bundled 'lite', which needs no network"
        ) from error

    def _explain(self, error: Exception, filename: str) -> NoReturn:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if isinstance(error, GatedRepoError):
            raise RepositoryError(
                f"{self.repo!r} is gated: accept its conditions on its page with your account, then set HF_TOKEN "
                "or run `hf auth login`"
            ) from error
        if isinstance(error, RepositoryNotFoundError):
            raise RepositoryError(
                f"there is no repository {self.repo!r} on {_endpoint() or 'the Hub'}, or it is private: check the "
                "spelling; for a private one set HF_TOKEN or run `hf auth login`"
            ) from error
        if isinstance(error, RevisionNotFoundError):
            raise RepositoryError(f"{self.repo!r} has no revision {self.revision!r}") from error
        if isinstance(error, HFValidationError):
            raise RepositoryError(f"{self.repo!r} is no Hub id: it has the form org/repo ({error})") from error
        if isinstance(error, HfHubHTTPError):
            raise HubError(f"the Hub refused {filename} of {self.name!r}: {error}") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(
                f"the disk is full: {filename} of {self.name!r} could not be stored ({self._free()}). "
                "Nothing half-written was kept; make room, or choose another place with cache_dir= or HF_HOME"
            ) from error
        raise HubError(
            f"downloading {filename} of {self.name!r} failed: {error or type(error).__name__}. "
            "Nothing half-written was kept; run it again"
        ) from error

    def _free(self) -> str:
        from huggingface_hub.constants import HF_HUB_CACHE

        place = Path(self.cache_dir or HF_HUB_CACHE)
        while not place.exists() and place != place.parent:
            place = place.parent
        return f"{shutil.disk_usage(place).free / 1e6:.0f} MB free at {os.fspath(place)!r}"


def _endpoint() -> str | None:
    # huggingface_hub reads the variable at its import alone.
    return os.environ.get("HF_ENDPOINT") or None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() not in _FALSE


def is_cached(repo: str, revision: str, names: tuple[str, ...]) -> bool:
    """Whether one of the files lies in the cache, whole; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repo, name, revision=revision), str) for name in names)


def publish(folder: Path, repo: str, *, private: bool = False, revision: str | None = None, message: str) -> str:
    """Upload a folder to a Hub repository, which is made if there is none; returns the commit's address.

    Raises:
        HubError: no token, no right to write, no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if _offline():
        raise HubError("cannot publish with HF_HUB_OFFLINE set")
    api = HfApi(endpoint=_endpoint(), library_name="robustsim")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, revision=revision, commit_message=message)
    except HfHubHTTPError as error:
        raise HubError(
            f"publishing to {repo!r} failed: {error} A token with the right to write there is needed: set HF_TOKEN "
            "or run `hf auth login`"
        ) from error
    except Exception as error:  # as in HubRepository.file
        raise HubError(f"publishing to {repo!r} failed: {error.__cause__ or error or type(error).__name__}") from error
    return str(done.commit_url)
