"""What `make` says and what `make demo` would do."""

import re
import shlex
import subprocess

from programs import ROOT

from utils import options
from utils.arguments import folder, log_file


def make(*arguments: str) -> str:
    command = ["make", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_make_alone_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert re.findall(r"^make (\w+) ", make(), re.MULTILINE) == targets[1:]


def test_demo_writes_only_into_the_folder_that_clean_removes():
    assert re.search(r"^rm -rf .* demo ", make("-n", "clean"), re.MULTILINE)
    commands = make("-n", "-o", ".venv/.installed", "demo").replace("\\\n", " ").splitlines()
    programs = set()
    for words in map(shlex.split, commands):
        if words and words[0].endswith("/python"):
            program = words[1].removesuffix(".py")
            settings = options.parse(program, None, words[2:])
            for name, row in options.rows_of(program).items():
                if row.kind in (folder, log_file) and name != "data_path":
                    assert "demo" in str(settings[name]).split("/"), f"{program}.py {options.flag(name)}"
            programs.add(program)
    assert programs == {"train", "compute_projections", "reinit_layers"}
