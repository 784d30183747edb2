"""The wheel: what is in it, what its metadata says, and that it works without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import ageray

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from this tree without any download, outside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("ageray", "configs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    program = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    words = [sys.executable, "-c", program, str(folder)]
    subprocess.run(words, cwd=source, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages, as in `site-packages`."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, where: Path, *words: str) -> str:
    """What a Python prints that sees the wheel and its dependencies, not the checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, *words]
    ended = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout


def test_it_is_small_and_complete(wheel: Path) -> None:
    assert wheel.stat().st_size < 40 * 2**20
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        shipped = {name.removeprefix("ageray/") for name in names if name.startswith("ageray/configs/")}
        for file in (ROOT / "configs").rglob("*.yaml"):
            assert archive.read(f"ageray/{file.relative_to(ROOT)}") == file.read_bytes()
    assert shipped == {str(file.relative_to(ROOT)) for file in (ROOT / "configs").rglob("*.*")}
    for version in (1, 2, 3):
        assert f"ageray/zoo/default/{version}/model.safetensors" in names
    assert {name.split("/")[0] for name in names} == {"ageray", f"ageray-{ageray.__version__}.dist-info"}


def test_its_metadata(wheel: Path) -> None:
    folder = f"ageray-{ageray.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        weights = archive.read(f"{folder}/licenses/ageray/zoo/LICENSE-WEIGHTS.md").decode()
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
    assert metadata["Version"] == ageray.__version__
    assert metadata["License-Expression"] == "Apache-2.0 AND LicenseRef-ageray-weights-research-only"
    assert "non-commercial research only" in weights
    assert "ageray = ageray.__main__:main" in scripts
    classifiers = metadata.get_all("Classifier") or []
    assert "Programming Language :: Python :: 3.13" in classifiers


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ageray.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"].startswith(citation["license"])


def test_the_commands_run_beside_folders_of_the_same_names(installed: Path, tmp_path: Path) -> None:
    for name in ("jobs", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('of another project')\n")
    assert run(installed, tmp_path, "-m", "ageray", "--version") == f"ageray {ageray.__version__}\n"
    assert "usage: ageray score " in run(installed, tmp_path, "-m", "ageray", "score", "--help")


def test_names_of_settings_and_models_work_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    program = (
        "import ageray; from ageray import bundle, config;"
        "print(ageray.__file__); print(config.load(['recipe:baseline', 'data:utkface']).data.name);"
        "print(bundle.load('zoo:default').experiment.model.backbone)"
    )
    file, data, backbone = run(installed, tmp_path, "-c", program).split()
    assert Path(file).is_relative_to(installed)
    assert (data, backbone) == ("utkface", "mobilenet_v1")
