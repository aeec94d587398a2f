"""Folders that all processes of a test run share, so that nothing is compiled twice."""

import os


def run_folder(tmp_path_factory, name):
    """The folder of this name; the fixture tmp_path_factory knows which run it is."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder
