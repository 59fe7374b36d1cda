"""TensorBoard logs."""

import os
import subprocess
import sys

from programs import ROOT


def test_removed_folder_is_one_error_and_no_traceback_of_the_writer_thread():
    code = """
import contextlib
import shutil
from pathlib import Path
from core.errors import RunError
from utils.training.board import Board

try:
    with contextlib.closing(Board(Path("board/run"), 0, {"lr": 0.1})) as board:
        shutil.rmtree("board")
        board.add(1, {"loss/train": 0.5})
except RunError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # a process, because pytest handles errors of threads
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (finished.stdout, finished.stderr) == ("board/run: No such file or directory\n", "")
