"""Four folders at the root, one import name: links for editable installs, real folders in wheels."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("rewrite", "passes", "mixers", "export")
CODE = (
    *("vectors.h", "rows.h", "fourier.h", "convolution.c", "convolution_gradients.c"),
    *(f"long_short/{name}" for name in ("attention.h", "attention.c", "attention_gradients.c", "pooling.c")),
)


@pytest.fixture(scope="module")
def wheel_options():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["hatch"]["build"]["targets"]["wheel"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_link_stands_beside_the_drivers(folder):
    link = ROOT / "src/remixer" / folder
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / folder
    assert (link / "__init__.py").is_file()


def test_there_are_no_other_links():
    links = {path.name for path in (ROOT / "src/remixer").iterdir() if path.is_symlink()}
    assert links == set(FOLDERS)


def test_the_three_lists_agree(wheel_options):
    assert wheel_options["only-include"] == ["src/remixer", *FOLDERS]
    assert wheel_options["exclude"] == [f"src/remixer/{folder}" for folder in FOLDERS]
    assert wheel_options["sources"] == {
        "src/remixer": "remixer",
        **{folder: f"remixer/{folder}" for folder in FOLDERS},
    }


def test_importing_remixer_makes_no_second_copies():
    code = f"import sys, remixer; print([name for name in {FOLDERS!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_wheel_holds_every_file_once(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    names = [name for name in files if name.endswith(".py")]
    assert len(names) == len(set(names))
    source = ROOT / "src/remixer"
    drivers = [path for path in source.rglob("*.py") if path.relative_to(source).parts[0] not in FOLDERS]
    expected = {f"remixer/{path.relative_to(source).as_posix()}" for path in drivers}
    for folder in FOLDERS:
        expected |= {
            f"remixer/{folder}/{path.relative_to(ROOT / folder).as_posix()}" for path in (ROOT / folder).rglob("*.py")
        }
    assert set(names) == expected
    assets = {f"remixer/viewing/assets/{path.name}" for path in (source / "viewing" / "assets").iterdir()}
    assert assets <= set(files)
    assert {f"remixer/mixers/{name}" for name in CODE} <= set(files)
    assert any(name.endswith("licenses/src/remixer/viewing/assets/dagre.LICENSE.txt") for name in files)
