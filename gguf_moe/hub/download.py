"""Download a model into huggingface_hub's cache: kept when it breaks off, and checked at the end.

huggingface_hub itself begins a file anew after an interruption; so the bytes are fetched here, into a file
beside its blobs, and it makes the rest of its cache's entry once the blob is there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf_moe.errors import HubError
from gguf_moe.hub.cache import cached, default_cache_dir, hub_module, repo_dir
from gguf_moe.hub.names import HubName, choose, quants_of, size

Progress = Callable[[str, int, int], None]
"""Called with the stage ("downloading", "checking"), the bytes that are done, and those there are to do."""

MAX_HTTP_BYTES = 50_000_000_000
"""Larger files the hub gives to its own client only."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 16 << 20


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file on the hub: its path in the repository, its bytes, and its SHA-256 if the hub tells it."""

    path: str
    nbytes: int
    sha256: str | None


class Pull:
    """A model that can be downloaded: what the hub has for a name, and how much of it is here already."""

    def __init__(self, name: HubName, *, cache_dir: Path | None = None, endpoint: str | None = None):
        """Ask the hub. endpoint and cache_dir None are those of huggingface_hub.

        Raises HubError if the hub cannot be reached, or has no such repository, file or quantization.
        """
        self.name = name
        self._cache_dir = cache_dir or default_cache_dir()
        self._blobs = repo_dir(self._cache_dir, name.repo) / "blobs"
        self._endpoint: str = endpoint or hub_module("constants").ENDPOINT
        with _told(name, self._endpoint):
            api = hub_module("hf_api").HfApi(endpoint=self._endpoint)
            info = api.model_info(name.repo, revision="main", files_metadata=True, timeout=10)
        self._commit: str = info.sha
        there = {file.rfilename: file for file in info.siblings or ()}
        self.files = [_hub_file(there[path]) for path in choose(there, name)]
        if not self.files:
            raise HubError(_nothing_fits(name, list(there)))

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)

    @property
    def nbytes_here(self) -> int:
        """Bytes that were downloaded before."""
        return sum(self._bytes_here(file) for file in self.files)

    def run(self, progress: Progress | None = None) -> Path:
        """Download what is missing; the path in the cache, of a split model that of the first part.

        Raises HubError: no room, no network, no access, a wrong checksum. What has come then stays, but for a
        file with a wrong checksum.
        """
        missing, room = self.nbytes - self.nbytes_here, _free(self._cache_dir)
        if missing > room:
            raise HubError(
                f"{self.name} needs {size(missing)} more, but {self._cache_dir} has room for "
                f"{size(room)}; make room, or let HF_HOME name another disk."
            )
        done = 0
        for file in self.files:
            before = done

            def report(stage: str, n: int, before: int = before) -> None:
                if progress:
                    progress(stage, before + n, self.nbytes)

            with _told(self.name, self._endpoint):
                self._fetch(file, report)
            done += file.nbytes
        return cached(self.name, self._cache_dir)

    def _fetch(self, file: HubFile, report: Callable[[str, int], None]) -> None:
        """One file into the cache."""
        if file.sha256 and file.nbytes <= MAX_HTTP_BYTES and not (self._blobs / file.sha256).exists():
            self._fetch_blob(file, file.sha256, report)
        hub_module("file_download").hf_hub_download(
            self.name.repo,
            file.path,
            revision="main",
            cache_dir=self._cache_dir,
            endpoint=self._endpoint,
        )

    def _fetch_blob(self, file: HubFile, sha256: str, report: Callable[[str, int], None]) -> None:
        """The bytes of one file, from where an earlier download ended."""
        download = hub_module("file_download")
        url = download.hf_hub_url(self.name.repo, file.path, revision=self._commit, endpoint=self._endpoint)
        partial = _partial(self._blobs, sha256)
        with self._locked(file, sha256), _opened(partial, file.nbytes) as stream:
            download.http_get(
                url,
                _Counting(stream, lambda n: report("downloading", n)),
                resume_size=stream.tell(),
                headers=hub_module("utils").build_hf_headers(),
                expected_size=file.nbytes,
            )
            stream.flush()
            if _sha256(partial, lambda n: report("checking", n)) != sha256:
                partial.unlink()
                raise HubError(
                    f"{self.name}: {file.path} came with a wrong checksum and was not kept; pull it again."
                )
            partial.replace(self._blobs / sha256)

    @contextmanager
    def _locked(self, file: HubFile, sha256: str) -> Iterator[None]:
        """Alone with one blob. huggingface_hub takes the same lock."""
        from filelock import FileLock, Timeout

        path = self._cache_dir / ".locks" / self._blobs.parent.name / f"{sha256}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path, timeout=0):
                yield
        except Timeout:
            raise HubError(
                f"{self.name}: another program downloads {file.path} now; wait for its end."
            ) from None

    def _bytes_here(self, file: HubFile) -> int:
        if file.sha256:
            for path in (self._blobs / file.sha256, _partial(self._blobs, file.sha256)):
                if path.exists():
                    return path.stat().st_size
        return 0


class _Counting:
    """A file that tells how long it is while it is written."""

    def __init__(self, stream: BinaryIO, report: Callable[[int], None]):
        self._stream = stream
        self._report = report
        self.seek, self.tell, self.truncate = stream.seek, stream.tell, stream.truncate

    def write(self, data: bytes) -> int:
        n = self._stream.write(data)
        self._report(self._stream.tell())
        return n


def _hub_file(sibling: Any) -> HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    return HubFile(sibling.rfilename, sibling.size or 0, sha256 if _SHA256.fullmatch(sha256 or "") else None)


def _nothing_fits(name: HubName, paths: list[str]) -> str:
    if quants := quants_of(paths):
        return (
            f"{name} is not there: the hub has {', '.join(quants)}; take one, as hf:{name.repo}:{quants[0]}"
        )
    return f"{name} has no GGUF file of a model; look for a repository of GGUF files, often NAME-GGUF."


def _partial(blobs: Path, sha256: str) -> Path:
    return blobs / f"{sha256}.incomplete"


def _free(directory: Path) -> int:
    """Bytes that a directory has room for, which may still have to be made."""
    there = next((path for path in (directory, *directory.parents) if path.exists()), Path())
    return shutil.disk_usage(there).free


def _opened(path: Path, most: int) -> BinaryIO:
    """A file to go on writing at its end; one of more than `most` bytes is begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = open(path, "ab")  # noqa: SIM115  the caller closes it
    if stream.seek(0, os.SEEK_END) > most:
        stream.truncate(0)
        stream.seek(0)
    return stream


def _sha256(path: Path, report: Callable[[int], None]) -> str:
    """The hash of a file, as 64 hexadecimal digits."""
    found, done = hashlib.sha256(), 0
    with open(path, "rb") as stream:
        while data := stream.read(_CHUNK):
            found.update(data)
            done += len(data)
            report(done)
    return found.hexdigest()


@contextmanager
def _told(name: HubName, endpoint: str) -> Iterator[None]:
    """What goes wrong with the hub, in one sentence."""
    errors = hub_module("errors")
    repo = f"{endpoint}/{name.repo}"
    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{name} is gated: accept its terms at {repo}, and give your token as HF_TOKEN or log in by hf."
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{name}: there is no public repository {repo}; see if its name is right, or give the token of "
            "a private one as HF_TOKEN."
        ) from None
    except errors.OfflineModeIsEnabled:
        raise HubError(
            f"{name} cannot be looked up while HF_HUB_OFFLINE is set; unset it, or give --offline."
        ) from None
    except errors.HfHubHTTPError as e:
        raise HubError(
            f"{name}: {endpoint} answers with the status {e.response.status_code}; try again later."
        ) from None
    except (errors.HTTPError, OSError) as e:
        raise HubError(_why(name, endpoint, e)) from None


def _why(name: HubName, endpoint: str, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC:
        return f"{name}: the disk is full; make room and pull again, which goes on where it ended."
    if path := getattr(error, "filename", None):
        reason = getattr(error, "strerror", error)
        return f"{name}: {path} cannot be written ({reason}); let HF_HOME name another place."
    return (
        f"{name}: {endpoint} cannot be reached, or the connection broke off ({type(error).__name__}); "
        "try again, which goes on where it ended, or take what the cache has with --offline."
    )
