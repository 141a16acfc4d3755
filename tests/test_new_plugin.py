"""``nextscale plugins new`` writes a plugin that passes its own tests; ``ls`` and ``check`` see what is installed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import forks
import pytest
from typer.testing import CliRunner

from nextscale_cli.main import app
from nextscale_cli.newplugin import write_plugin


def installed(name: str, axes: int | None, folder: Path) -> dict[str, str]:
    """Write a plugin and make it importable, with the metadata that an installation leaves; the environment to use."""
    plugin = folder / f"nextscale-{name}"
    write_plugin(name, plugin, axes)
    info = plugin / f"nextscale_{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: nextscale-{name}\nVersion: 0.1.0\n")
    module = f"nextscale_{name.replace('-', '_')}.plugin"
    (info / "entry_points.txt").write_text(f"[nextscale]\n{name} = {module}\n")
    return {**os.environ, "PYTHONPATH": str(plugin), "OMP_NUM_THREADS": "1"}


MODULE = "import runpy, sys; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
EXAMPLES = "    examples, few_examples = "


def run(environment: dict[str, str], folder: Path, module: str, *arguments: str) -> CompletedProcess[str]:
    return forks.run(MODULE, module, *arguments, cwd=folder, environment=environment)


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("heart-rate", 1),
        ("sets", None),
        pytest.param("pictures", 2, marks=pytest.mark.slow),
        pytest.param("volumes", 3, marks=pytest.mark.slow),
    ],
)
def test_a_new_plugin_passes_its_own_tests(name: str, axes: int | None, tmp_path: Path) -> None:
    environment = installed(name, axes, tmp_path)
    folder = tmp_path / f"nextscale-{name}"
    file = folder / "tests" / f"test_{name.replace('-', '_')}.py"
    text = file.read_text()
    assert f"{EXAMPLES}10, 5" in text
    file.write_text(text.replace(f"{EXAMPLES}10, 5", f"{EXAMPLES}3, 2"))
    done = run(environment, folder, "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "tests")
    assert done.returncode == 0, done.stdout[-3000:]
    assert not [path for path in folder.rglob("*.py") if "xample" in path.read_text().replace("examples", "")]
    found = run(environment, folder, "nextscale_cli.main", "plugins", "ls", "--json")
    listed = {row["name"]: row for row in json.loads(found.stdout)["modalities"]}
    assert listed[name]["distribution"] == f"nextscale-{name}" and listed[name]["presets"] == ["tiny"]
    environment["NEXTSCALE_DISABLE_PLUGINS"] = f"{name},no-such-plugin"
    found = run(environment, folder, "nextscale_cli.main", "plugins", "ls", "--json")
    assert name not in {row["name"] for row in json.loads(found.stdout)["modalities"]}


@pytest.mark.slow
def test_a_new_plugin_passes_the_check(tmp_path: Path) -> None:
    environment = installed("series", 1, tmp_path)
    done = run(environment, tmp_path, "nextscale_cli.main", "plugins", "check", "series", "--examples", "5")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Heart Rate"], "is no name for a plugin"),
        (["class"], "is no name for a plugin"),
        (["image"], "installed already"),
        (["x", "--grid", "1", "--custom"], "exclude each other"),
        (["x", "--out", "."], "exists"),
    ],
)
def test_what_cannot_be_written_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["plugins", "new", *arguments])
    assert result.exit_code == 2 and message in result.stderr and not list(tmp_path.iterdir())
