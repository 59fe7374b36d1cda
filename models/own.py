"""Networks in files of the user's own: `--arch path/to/file.py:Name`.

The file is loaded as for a program in its own folder: it can import what is beside it, also modules with the names
of ours. A file inside a package is loaded as part of it.
"""

import contextlib
import hashlib
import inspect
import re
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from core.text import first_line
from models import registry, zoo
from models.registry import WEIGHTS_ALONE, ModelError

PROGRAMS = Path(__file__).resolve().parent.parent  #: the folder of the three programs
OUR_MODULES = ("core", "data", "models", "utils", "train", "compute_projections", "reinit_layers")
#: Ours and that of libraries: not the user's, even if it is below the folder of the file.
OTHER_CODE = [PROGRAMS / name for module in OUR_MODULES for name in (module, f"{module}.py")]
OTHER_CODE += [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
#: What a class or function is called with, as far as it takes these arguments.
ARGUMENTS = ("num_classes", "in_channels", "image_size")

_loaded: list["OwnNetwork"] = []


class OwnNetwork:
    """A class or function in a file, as a builder of the registry. Raises ModelError if it cannot be one."""

    def __init__(self, arch: str, path: Path, name: str):
        self.arch, self.path, self.name = arch, path, name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(f"--arch {arch}: {path} cannot be read ({error.strerror})") from None
        self.sha256 = hashlib.sha256(content).hexdigest()[:16]  #: its first digits
        file = path.resolve()
        self.root = next(folder for folder in file.parents if not (folder / "__init__.py").is_file())
        # Our packages would hide folders of the same names that have no __init__.py.
        others = [entry for entry in sys.path if Path(entry).resolve() != PROGRAMS]
        self._path, self._modules = [str(file.parent), str(self.root), *others], {}
        module = types.ModuleType(f"network_{file.stem}")
        module.__file__, module.__package__ = str(file), ".".join(file.parent.relative_to(self.root).parts)
        sys.modules[module.__name__], members = module, vars(module)
        _loaded[:] = [self]
        with self._imports():
            exec(compile(content, file, "exec", dont_inherit=True), members)
        self.make = members.get(name)
        if not callable(self.make) or isinstance(self.make, nn.Module):
            kinds = (type, types.FunctionType)
            own = [key for key, one in members.items() if isinstance(one, kinds)]
            own = [key for key in own if members[key].__module__ == module.__name__]
            found = "missing" if self.make is None else f"a {type(self.make).__name__}"
            problem = f"{name or 'NAME'} is {found}: give FILE.py:NAME of a class or function that makes a network"
            raise ModelError(f"--arch {arch}: {problem}; {path} has {', '.join(own) or 'none'}")
        signature = inspect.signature(self.make)
        parameters = signature.parameters.values()
        takes = {"num_classes" if one.kind is one.VAR_KEYWORD else one.name for one in parameters}
        self.takes = takes.intersection(ARGUMENTS)
        try:
            signature.bind(**dict.fromkeys(self.takes))
        except TypeError as error:
            problem = f"{error}: it gets {', '.join(ARGUMENTS)} alone; add a function that gives it the rest"
            raise ModelError(f"--arch {arch}: {problem}") from None

    def __call__(self, name: str, *values) -> nn.Module:
        """Build the network. values: of ARGUMENTS."""
        given = dict(zip(ARGUMENTS, values, strict=True))
        with self._imports():
            net = self.make(**{argument: given[argument] for argument in self.takes})
            if not isinstance(net, nn.Module):
                raise ModelError(f"--arch {self.arch}: it makes a {type(net).__name__}, not an nn.Module")
            if any(map(nn.parameter.is_lazy, net.state_dict().values())):
                raise ModelError(f"--arch {self.arch}: it has lazy layers: give them the sizes of their inputs")
        return net

    @contextlib.contextmanager
    def _imports(self) -> Iterator[None]:
        """Import, in the block, what the file would import as a program in its own folder."""

        def take_out() -> dict[str, types.ModuleType]:
            return {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] in OUR_MODULES}

        ours, path = take_out(), sys.path[:]
        sys.modules.update(self._modules)
        sys.path[:] = self._path
        try:
            yield
        finally:
            self._modules, self._path = take_out(), sys.path[:]
            sys.modules.update(ours)
            sys.path[:] = path

    def wrote(self, frame: traceback.FrameSummary) -> bool:
        """Return whether a line of code is the user's: in the file, or beside it."""
        path = Path(frame.filename).resolve()
        return self.root in path.parents and not any(map(path.is_relative_to, OTHER_CODE))


def load_own(arch: str) -> OwnNetwork | None:
    """Load the file of an architecture FILE.py:NAME, and register NAME. Return None for any other architecture."""
    parts = re.fullmatch(r"(.+\.py)(?::(.*))?", arch, re.DOTALL)
    if parts is None:
        return None
    file, name = parts.groups("")
    is_ours = not isinstance(registry._builders.get(name), OwnNetwork | None)
    if is_ours or name in (*zoo.other_names(), WEIGHTS_ALONE):
        problem = f"another network is called {name} here, and snapshots are named after it"
        raise ModelError(f"--arch {arch}: {problem}: add a line My_{name} = {name}, and give {file}:My_{name}")
    registry._builders[name] = network = OwnNetwork(arch, Path(file).expanduser(), name)
    return network


def explain_own_error(error: BaseException) -> tuple[str, str] | None:
    """Return one line about an error in the file of a network, and the traceback through the user's code alone.

    None if the error is elsewhere.
    """
    shown = traceback.TracebackException.from_exception(error)
    for network in _loaded:
        if any(frame.filename == __file__ or network.wrote(frame) for frame in shown.stack):
            part = shown
            while part is not None:
                part.stack = traceback.StackSummary.from_list(list(filter(network.wrote, part.stack)))
                part = part.__cause__ or part.__context__
            line = f"--arch {network.arch}: {type(error).__name__}: {first_line(error)}"
            return line, "".join(shown.format())
    return None
