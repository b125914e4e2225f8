"""A folder is one run's at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomalygpt.errors import UserError
from anomalygpt.files import claimed
from tests.processes import started
from tests.shared_data import ROOT

HOLD = """
import sys, time
import anomalygpt
from pathlib import Path
from anomalygpt.files import claimed

with claimed(Path(sys.argv[1]), "--out"):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_folder_is_claimed_by_one_process_until_it_ends(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "code")}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with started(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        words = r"another run is writing there.*another --out"
        with pytest.raises(UserError, match=words), claimed(tmp_path, "--out"):
            pass
    for _ in range(2):
        with claimed(tmp_path, "--out"):
            pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be made"), claimed(tmp_path / "file" / "run", "--out"):
        pass
