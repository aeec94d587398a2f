"""Downloads from a stand-in for the hub: complete, broken off, wrong, refused; models out of the cache."""

import errno
import os
import re
import socket
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir

import gguf_moe
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.errors import HubError
from gguf_moe.hub import download
from gguf_moe.hub.cache import cached, located
from gguf_moe.hub.download import Pull
from gguf_moe.hub.names import HubName, parse_name

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
NAME = parse_name("hf:owner/name")
LARGE = "large-Q8_0.gguf"
# Larger than the pieces in which huggingface_hub reads an answer, so that there is a middle.
DATA = os.urandom(25 << 20)


@pytest.fixture
def pull(hub, tmp_path):
    """pull("hf:..."): download into a cache of the test's own."""
    return lambda name, progress=None: Pull(parse_name(name), cache_dir=tmp_path, endpoint=hub.endpoint).run(
        progress
    )


def gets(hub):
    return [asked for asked in hub.asked if asked[0] == "GET" and "/resolve/" in asked[1]]


def test_a_model_comes_into_the_cache_of_huggingface_hub(hub, pull, tmp_path):
    hub.files = {"x-Q4_K_M.gguf": b"GGUF small", "x-Q8_0.gguf": b"GGUF other", "mmproj-x-f16.gguf": b"eye"}
    stages = []
    path = pull("hf:owner/name", lambda *what: stages.append(what))
    assert path.read_bytes() == b"GGUF small"
    assert stages[0] == ("downloading", 10, 10)
    assert stages[-1] == ("checking", 10, 10)
    (repo,) = scan_cache_dir(tmp_path).repos
    assert repo.repo_id == "owner/name"
    assert [file.file_name for file in next(iter(repo.revisions)).files] == ["x-Q4_K_M.gguf"]
    n_gets = len(gets(hub))
    assert pull("hf:owner/name:q4_k_m") == path
    assert len(gets(hub)) == n_gets == 1


def test_all_parts_of_a_split_model_come(hub, pull):
    parts = [f"sub/x-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    hub.files = {path: path.encode() for path in parts} | {"y-Q8_0.gguf": b""}
    path = pull(f"hf:owner/name/{parts[1]}")
    assert path.name == Path(parts[0]).name
    assert sorted(found.read_text() for found in path.parent.iterdir()) == parts


@pytest.mark.parametrize("by", ["us", "the network"])
def test_a_download_goes_on_where_it_ended(hub, pull, by):
    hub.files = {LARGE: DATA}

    def stop(stage, done, total):
        if by == "us" and done < total:
            raise KeyboardInterrupt

    hub.cut = 15 << 20 if by == "the network" else None
    with suppress(KeyboardInterrupt, HubError):  # some versions of the client try again by themselves
        pull("hf:owner/name", stop)
    assert pull("hf:owner/name").read_bytes() == DATA
    first, second = gets(hub)
    assert first[2] is None
    done = int(re.fullmatch(r"bytes=(\d+)-", second[2])[1])
    assert (10 << 20) <= done <= (15 << 20)


def test_a_wrong_checksum_is_refused_and_the_file_not_kept(hub, pull, tmp_path):
    hub.files, hub.wrong_hash = {"x.gguf": b"GGUF"}, {"x.gguf"}
    with pytest.raises(HubError, match=r"x.gguf came with a wrong checksum and was not kept"):
        pull("hf:owner/name")
    assert [path for path in (tmp_path / "models--owner--name").rglob("*") if path.is_file()] == []


def test_what_is_not_there_is_said_with_what_is(hub, pull):
    hub.files = {"x-Q4_K_M.gguf": b"", "x-Q8_0.gguf": b"", "README.md": b""}
    with pytest.raises(HubError, match=r"Q2_K is not there: the hub has Q4_K_M, Q8_0; take one"):
        pull("hf:owner/name:Q2_K")
    hub.files = {"model.safetensors": b""}
    with pytest.raises(HubError, match=r"has no GGUF file of a model"):
        pull("hf:owner/name")
    with pytest.raises(HubError, match=r"there is no public repository .*/owner/absent"):
        pull("hf:owner/absent")


def test_a_gated_repository_says_what_to_do(hub, pull):
    hub.files, hub.gated = {"x.gguf": b"GGUF"}, True
    with pytest.raises(HubError, match=r"is gated: accept its terms at .* HF_TOKEN"):
        pull("hf:owner/name")


def test_a_full_disk_is_seen_before_and_while_it_fills(hub, pull, monkeypatch):
    hub.files = {"x.gguf": b"GGUF"}
    usage = namedtuple("Usage", "total used free")(10, 9, 1)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(HubError, match=r"has room for 0.0 MB; make room"):
            pull("hf:owner/name")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(HubError, match=r"the disk is full"):
        pull("hf:owner/name", full)


def test_a_cache_that_cannot_be_made_is_named(hub, tmp_path):
    hub.files = {"x.gguf": b"GGUF"}
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match=r"file/hub.* cannot be written \(Not a directory\); let HF_HOME"):
        Pull(NAME, cache_dir=tmp_path / "file" / "hub", endpoint=hub.endpoint).run()


def test_without_a_network_the_cache_is_named(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(HubError, match=r"cannot be reached.*--offline"):
            Pull(NAME, cache_dir=tmp_path, endpoint=endpoint)


def test_two_downloads_of_a_file_do_not_meet(hub, pull):
    hub.files = {"x.gguf": b"GGUF"}

    def again(*_):
        pull("hf:owner/name")

    with pytest.raises(HubError, match=r"another program downloads x.gguf now"):
        pull("hf:owner/name", again)


@pytest.fixture
def pulled(tmp_path, monkeypatch):
    """A cache that has the small model in two repositories, one of them at an old commit only."""
    for repo, commit, is_main in (("owner--name", "1" * 40, True), ("owner--old", "2" * 40, False)):
        snapshot = tmp_path / f"models--{repo}" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / FIXTURE.name).symlink_to(FIXTURE)
        (snapshot / "gone-Q8_0.gguf").symlink_to("nowhere")
        if is_main:
            refs = tmp_path / f"models--{repo}" / "refs"
            refs.mkdir()
            (refs / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_model_is_opened_out_of_the_cache_without_a_network(pulled, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", None)
    with open_checkpoint("hf:owner/name:Q4_K_M") as checkpoint:
        assert checkpoint.path.name == FIXTURE.name
    ids = gguf_moe.load_tokenizer("hf:owner/old").encode("Hi")
    assert ids == gguf_moe.load_tokenizer(FIXTURE).encode("Hi")
    assert located(FIXTURE) == FIXTURE


def test_what_the_cache_lacks_is_for_pull(pulled):
    with pytest.raises(
        HubError, match=r"Q8_0 is not in .*, only Q4_K_M; download it with: gguf-moe pull hf:"
    ):
        located("hf:owner/name:Q8_0")
    with pytest.raises(HubError, match=r"download it with: gguf-moe pull hf:owner/absent$"):
        cached(HubName("owner/absent"))


def test_the_command_prints_the_path_and_later_commands_find_it(hub, tmp_path):
    hub.files = {"x.Q4_K_M.gguf": FIXTURE.read_bytes()}
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HOME": str(tmp_path)}

    def run(*arguments, endpoint):
        return subprocess.run(
            [sys.executable, "-m", "gguf_moe", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment | {"HF_ENDPOINT": endpoint},
        )

    absent = "http://127.0.0.1:9"
    missing = run("inspect", "hf:owner/name", endpoint=absent)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert re.fullmatch(r"Error: hf:owner/name is not in .*gguf-moe pull hf:owner/name\n", missing.stderr)
    done = run("pull", "hf:owner/name", endpoint=hub.endpoint)
    assert done.stderr == "x.Q4_K_M.gguf: 1.6 MB\n"
    assert Path(done.stdout.strip()).read_bytes() == FIXTURE.read_bytes()
    assert run("pull", "hf:owner/name", "--offline", endpoint=absent).stdout == done.stdout
    assert run("inspect", "hf:owner/name:Q4_K_M", endpoint=absent).stdout.endswith("runs here\n")
