"""What is written whole leaves no half behind, and nothing beside it."""

from pathlib import Path

import pytest

from gguf_moe.files import written_whole


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_file_is_what_it_was(tmp_path, error):
    def write_half(path):
        with written_whole(path) as file:
            file.write(b"half")
            raise error

    (tmp_path / "kept").write_bytes(b"before")
    for name in ("kept", "new"):
        with pytest.raises(error):
            write_half(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == b"before"


def test_a_link_stays_and_a_device_is_written_as_it_is(tmp_path):
    (tmp_path / "kept").write_bytes(b"before")
    (tmp_path / "link").symlink_to("kept")
    with written_whole(tmp_path / "link") as file:
        file.write(b"after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept").read_bytes() == b"after"
    with written_whole("/dev/null") as file:
        file.write(b"gone")
    assert Path("/dev/null").is_char_device()
