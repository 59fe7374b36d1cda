"""Run what README.md and the pages in docs/ show, and bring them up to date: `make docs`.

The language of a block in Markdown says what happens to it:

- `bash`: its commands are run, one after another. They end with exit status 0, or with the one in a comment at the
  end of the line: `# exit status 2`.
- `python`: it is run, with the names that the blocks before it have set. After "This is `FILE`:" it is written to
  that file instead.
- `text`: what the block before it has printed. Each line has to be printed, in this order, up to its numbers;
  `...` stands for lines that are left out.
- `sh`: commands for several GPUs, a cluster or hours: only the options of the programs are checked.
- `diff`: a change of the programs, which is made in the folder where the page is run. It has no line numbers.

All blocks of a page are run in one folder, in order.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the last digits depend on it

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
PROGRAMS = ("train.py", "compute_projections.py", "reinit_layers.py")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"This is `(\S+)`[^\n]*:\n\n\Z")
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")
#: Figures of the pages that `make docs` draws.
FIGURES = ("mass_lenet", "reinit_lenet_15", "criticality_lenet_15", "pandas")


def run(page: str) -> str:
    """Run the blocks of a page in the working directory. Return the page with the output as it is now."""
    for name in (*PROGRAMS, "experiments"):  # for commands that a shell has to run
        if not Path(name).exists():
            Path(name).symlink_to(ROOT / name)
    names: dict = {}
    printed, parts, end = "", [], 0
    for block in BLOCK.finditer(page):
        language, content = block.groups()
        parts.append(page[end : block.start(2)])
        end = block.end(2)
        file = FILE.search(page[: block.start()])
        if file and language == "python":
            Path(file[1]).parent.mkdir(exist_ok=True)
            Path(file[1]).write_text(content, encoding="utf-8")
        elif language in ("python", "bash"):
            with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
                if language == "python":
                    exec(compile(content, f"```python {content.splitlines()[0]}", "exec"), names)
                else:
                    run_commands(content)
            printed = output.getvalue()
        elif language == "text":
            content = as_printed(content, printed)
        elif language == "sh":
            check_options(content)
        elif language == "diff":
            change(content)
        parts.append(content)
    return "".join([*parts, page[end:]])


def run_commands(block: str) -> None:
    """Run the commands of a block: simple ones of Python programs in this process, all others by bash."""
    for line in statements(block):
        expected = re.search(r"# exit status (\d+)$", line)
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "python" and not re.search(r"[\n|<>;&*{$~]", line):
            program, *options = words[1:]
            if program in PROGRAMS or program == "experiments/compare.py":
                status = call(program, options)
            else:
                runpy.run_path(program, run_name="__main__")
                status = 0
        else:
            environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, env=environment)
            print(done.stdout, done.stderr)
            status = done.returncode
        if status != (int(expected[1]) if expected else 0):
            raise AssertionError(f"exit status {status} of: {line}\n{sys.stdout.getvalue()[-2000:]}")


def statements(block: str) -> list[str]:
    """Return the commands of a block. Those of a loop are repeated, with the values of its variable."""
    loop = re.compile(r"^for (\w+) in ([^;\n]+); do\n(.*?)^done$", re.MULTILINE | re.DOTALL)
    block = loop.sub(lambda m: "".join(m[3].replace(f"${m[1]}", value) for value in m[2].split()), block)
    return [line.strip() for line in block.replace("\\\n", " ").splitlines()]


def call(program: str, options: list[str]) -> int:
    """Run a program in this process. Return its exit status."""
    try:
        return importlib.import_module(program.removesuffix(".py").replace("/", ".")).main(options)
    except SystemExit as end:
        return end.code


def as_printed(shown: str, printed: str) -> str:
    """Return lines of output with the numbers that were printed. Raise AssertionError if one was not printed."""
    lines, found = iter(printed.splitlines()), []
    for line in shown.splitlines():
        if line.strip() and line != "...":
            match = next((other for other in lines if without_numbers(other) == without_numbers(line)), None)
            if match is None:
                raise AssertionError(f"not printed: {line}\n{printed[-3000:]}")
            line = match
        found.append(line.rstrip())
    return "\n".join(found) + "\n"


def without_numbers(line: str) -> str:
    return " ".join(NUMBER.sub("0", line).split())


def change(diff: str) -> None:
    """Make a change in the working directory. Raise AssertionError if the lines around it are not found once."""
    for path, hunk in re.findall(r"^\+\+\+ b/(\S+)\n@@\n(.*?)(?=^--- |\Z)", diff, re.MULTILINE | re.DOTALL):
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))
        text = Path(path).read_text(encoding="utf-8")
        if text.count(before) != 1:
            raise AssertionError(f"these lines are {text.count(before)} times in {path}:\n{before}")
        Path(path).write_text(text.replace(before, after), encoding="utf-8")


def check_options(block: str) -> None:
    """Check the options of every command of the three programs in a block."""
    from utils.options import parse

    for command in block.replace("\\\n", " ").replace(" ... ", " ").splitlines():
        found = re.search(r"\b(train|compute_projections|reinit_layers)\.py (.*)", command)
        if found:
            text = re.sub(r'"?\$\w+"?', "1", found[2]).split(" &")[0].split("'")[0]
            try:
                parse(found[1], None, shlex.split(text, comments=True))
            except SystemExit:
                raise AssertionError(f"wrong options: {command}") from None


def options_table() -> str:
    """Return the options of the three programs as tables in Markdown, a table a group."""
    from utils.options import OPTIONS

    lines = []
    for group, rows in OPTIONS.items():
        lines += [f"### {group.capitalize()}", "", "| option | what it does | default | program |"]
        lines += ["| --- | --- | --- | --- |", *(options_row(row) for row in rows if not row.derived), ""]
    return "\n".join(lines)


def options_row(row) -> str:
    """Return an `Option` as a row of a table."""
    short = {"train": "train", "compute_projections": "projections", "reinit_layers": "reinit"}
    programs = ", ".join(short[name] for name in row.programs) if len(row.programs) < len(short) else "all"
    parser = argparse.ArgumentParser()
    row.add_to(parser, row.programs[0])
    action = parser._actions[-1]
    value = "\\|".join(action.choices or []) or action.metavar or (action.dest.upper() if row.kind is str else "")
    value += " ..." if row.several else ""
    names = ", ".join(f"`{f'{name} {value}'.strip()}`" for name in action.option_strings)
    text, said = re.fullmatch(r"(.*?)(?: \(default: (.*)\))?", row.help).groups()
    defaults = row.default.values() if isinstance(row.default, dict) else [row.default]
    default = ", ".join(f"`{one}`" for one in defaults if one is not None) or said or ""
    return f"| {names} | {text} | {default} | {programs} |"


def with_options(page: str) -> str:
    """Return docs/options.md with the tables of the options as they are now."""
    start, end = "<!-- written by make docs -->\n", "<!-- end -->"
    before, rest = page.split(start)
    return f"{before}{start}\n{options_table()}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Write the tables of options, and the output and figures of README.md and docs/results.md."""
    docs = ROOT / "docs"
    options = docs / "options.md"
    options.write_text(with_options(options.read_text(encoding="utf-8")), encoding="utf-8")
    for page in (ROOT / "README.md", docs / "results.md"):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            page.write_text(run(page.read_text(encoding="utf-8")), encoding="utf-8")
            for figure in [*Path("demo").rglob("*.png"), Path("pandas.png")]:
                if figure.stem in FIGURES and figure.exists():
                    shutil.copy(figure, docs)


if __name__ == "__main__":
    main()
