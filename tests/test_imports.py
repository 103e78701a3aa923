"""The house has floors: imports point down only, and `import remixer` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"rewrite": 1, "mixers": 1, "passes": 2, "export": 3, "remixer": 4}
HEAVY = ("onnx", "onnxruntime", "transformers", "matplotlib", "typer")


def folder(package):
    return ROOT / ("src/remixer" if package == "remixer" else package)


def modules():
    return [
        (package, path)
        for package in FLOORS
        for path in sorted(folder(package).rglob("*.py"))
        if not any(part.is_symlink() for part in path.parents)
    ]


def imported(path):
    """The modules that a file imports, "." in front of relative ones, and the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            yield from ((f"{name}.{alias.name}", node.lineno) for alias in node.names)


def package_of(name):
    """The package of ours that an imported name belongs to, or None."""
    first, *rest = name.split(".")
    if first != "remixer":
        return None
    return rest[0] if rest and rest[0] in FLOORS else "remixer"


def wrongs(package, name):
    """What is wrong with a package importing a name, or None."""
    if name.startswith("."):
        return "a relative import"
    if name.split(".")[0] in FLOORS.keys() - {"remixer"}:
        return "a bare name makes a second copy"
    other = package_of(name)
    if other is None or other == package:
        return None
    if FLOORS[other] >= FLOORS[package]:
        return f"{package} (floor {FLOORS[package]}) imports {other} (floor {FLOORS[other]})"
    return None


def test_all_packages_are_looked_at():
    assert {package for package, _ in modules()} == FLOORS.keys()


def test_no_import_points_up():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}: {wrong}"
        for package, path in modules()
        for name, line in imported(path)
        if (wrong := wrongs(package, name))
    ]
    assert found == []


@pytest.mark.parametrize(("package", "name", "wrong"), [
    ("rewrite", "remixer.mixers.base", "rewrite (floor 1) imports mixers (floor 1)"),
    ("mixers", "remixer.rewrite", "mixers (floor 1) imports rewrite (floor 1)"),
    ("passes", "remixer.export.artifact", "passes (floor 2) imports export (floor 3)"),
    ("export", "remixer.driver", "export (floor 3) imports remixer (floor 4)"),
    ("passes", "mixers.base", "a bare name makes a second copy"),
    ("passes", ".sites", "a relative import"),
    ("passes", "remixer.rewrite.match", None),
    ("remixer", "remixer.passes", None),
    ("rewrite", "torch.fx", None),
])  # fmt: skip
def test_wrong_imports_are_seen(package, name, wrong):
    assert wrongs(package, name) == wrong


def test_importing_remixer_is_light():
    code = f"import sys, remixer; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
