"""The command line: fast help, exit codes, and one-line errors."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from nextscale.conditioning import ConditionSpec
from nextscale.config.run import load_config
from nextscale.config.sections import SamplingConfig
from nextscale.errors import ConfigError, DataError
from nextscale.plugins import BrokenPlugin, Clash, discover, load_object
from nextscale.tokens.pyramid import Schedule
from nextscale_cli import errors, tables
from nextscale_cli.main import COMMANDS, app

RUN = "from nextscale_cli.main import main; main()"


def nextscale(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["sample", "--help"], ["config", "show"], ["plugins", "ls"]]
)
def test_no_torch_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom nextscale_cli.main import main\n"
        f"sys.argv = ['nextscale', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as exit:\n"
        "    print([m for m in ('torch', 'numpy', 'zarr', 'sklearn') if m in sys.modules], exit.code, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() in ("[] 0", "[] None"), result.stderr


def test_top_level_help_loads_neither_plugins_nor_models() -> None:
    code = (
        "import sys\nfrom nextscale_cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n"
        "    names = ('pydantic', 'rich', 'torch', 'nextscale_cli.train', 'nextscale_image')\n"
        "    print([m for m in names if m in sys.modules])"
    )

    def imported(**environment: str) -> str:
        told = {**os.environ, **environment}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=told)
        return done.stdout.splitlines()[-1]

    # Only where another distribution registers plugins are entry modules read, for their commands.
    assert imported(NEXTSCALE_DISABLE_PLUGINS="audio,points") == "[]"
    assert imported() in ("[]", "['nextscale_image']")


def test_help_names_every_command_and_summaries_match() -> None:
    text = invoke("--help").output
    for name, (path, summary) in COMMANDS.items():
        assert name in text and summary in text
        found = load_object(path)
        described = found.info.help if hasattr(found, "info") else found.__doc__
        assert described.strip().splitlines()[0] == summary, name
        assert invoke(name, "--help").exit_code == 0


def test_version() -> None:
    import nextscale as package

    assert invoke("--version").output.strip() == f"nextscale {package.__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train", "--prset", "x"], "No such option: --prset"),
        (["train", "--stage", "third"], "--stage"),
        (["sample"], "Missing argument 'RUN'"),
        (["sample", "r", "-n", "0"], "-n"),
    ],
)
def test_typer_keeps_its_own_messages_and_exit_code(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_wrong_settings_give_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for arguments, message in [
        (["train", "-m", "imgae"], "error: unknown modality 'imgae'; did you mean 'image'?"),
        (["train", "-p", "digist"], "error: unknown preset 'digist'; did you mean 'digits'?"),
        (["train", "training.tokenzier.lr=1"], "error: unknown key training.tokenzier.lr; did you mean 'tokenizer'?"),
        (["train", "lr"], "error: 'lr' is not an override: it should read key=value"),
        (["train", "-c", str(tmp_path / "no.yaml")], "no.yaml does not exist"),
        (["config", "show", "seed=-1"], "error: seed = -1 is wrong"),
        (["plugins", "info", "imgae"], "error: unknown modality 'imgae'"),
        (["sample", "run", "top_k=-1"], "error: top_k = -1 is wrong"),
        (["eval", "run", "--guidance", "0,x"], "error: --guidance '0,x' should be numbers"),
    ]:
        result = invoke(*arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr and result.stderr.count("\n") == 1, (arguments, result.stderr)
        assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("no such folder\nhere"), 2, "error: no such folder here"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            1,
            "error: the disk is full: runs/x was not written",
        ),
        (ValueError("odd"), 1, "error: internal: ValueError: odd (set NEXTSCALE_TRACEBACK=1 for the traceback)"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), 2, "error: Permission denied: 'a.png'"),
        (ConfigError("x" * 5000), 2, f"error: {'x' * 150}...{'x' * 150}"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_exceptions_become_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.delenv(errors.TRACEBACK, raising=False)
    with pytest.raises(SystemExit) as exit, errors.one_line_errors():
        raise error
    assert exit.value.code == code
    assert capsys.readouterr().err.strip() == message


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(errors.TRACEBACK, "1")
    with pytest.raises(ConfigError), errors.one_line_errors():
        raise ConfigError("x")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -c '{RUN}' config show | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stderr == ""
    assert result.returncode in (0, 141)  # 0 if everything fitted into the pipe before head closed it


@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        (">&-", 0),
        ("2>&-", 0),
        ("<&- >&- 2>&-", 0),
        ("seed=x >&-", 2),
        ("seed=x >&- 2>&-", 2),
        ("seed=x 2>/dev/full", 2),
    ],
)
def test_closed_and_full_streams(redirected: str, code: int, tmp_path: Path) -> None:
    command = f"{sys.executable} -c '{RUN}' config show {redirected}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert result.stderr.count("\n") <= 1
    assert result.returncode == code
    assert not list(tmp_path.iterdir())


def test_nobody_reads_the_error() -> None:
    command = f"{sys.executable} -c '{RUN}' config show seed=x 2> >(exec 0<&-)"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stdout) in ((2, ""), (141, ""))


def test_a_run_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for command in ("sample", "eval", "tokenize", "edit", "predict"):
        told = invoke(command, str(tmp_path / "file")).stderr
        assert told == f"error: {tmp_path / 'file'} is not a folder: name a run's folder\n"
        for wrong in ("n" * 5000, str(tmp_path / "file" / "x")):
            told = invoke(command, wrong).stderr
            assert told.startswith("error: no run folder at ") and told.count("\n") == 1


def test_paths_that_are_too_long() -> None:
    for arguments in (
        ["--out", "n" * 5000],
        ["--name", "n" * 5000],
        ["--config", "n" * 5000],
        ["--resume", "n" * 5000],
    ):
        result = invoke("train", *arguments)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, arguments
        assert "File name too long" in result.stderr and "internal" not in result.stderr


def test_interrupt_during_a_command() -> None:
    code = (
        "import nextscale_cli.main as m, nextscale.config.run as r\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "r.load_config = stop\nm.main()"
    )
    result = subprocess.run([sys.executable, "-c", code, "config", "show"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (130, "")


def test_config_show_is_the_configuration(tmp_path: Path) -> None:
    result = invoke("config", "show", "-m", "image", "-p", "none", "data=digits", "tokenizer.scales=1,2")
    assert result.exit_code == 0 and "# " in result.output
    (tmp_path / "c.yaml").write_text(result.output)
    overrides = ["data=digits", "tokenizer.scales=1,2"]
    assert load_config(file=tmp_path / "c.yaml") == load_config("image", "none", overrides=overrides)


def test_config_ls_and_validate(tmp_path: Path) -> None:
    assert "digits" in invoke("config", "ls").output
    file = tmp_path / "c.yaml"
    file.write_text("seed: 3\n")
    assert invoke("config", "validate", str(file)).output == "ok\n"
    file.write_text("sed: 3\n")
    result = invoke("config", "validate", str(file))
    assert result.exit_code == 2 and "c.yaml: unknown key sed; did you mean 'seed'?" in result.stderr


def test_plugins_ls_and_info() -> None:
    result = invoke("plugins", "ls")
    assert result.exit_code == 0
    for word in ("name", "distribution", "version", "presets", "image", "nextscale", "digits"):
        assert word in result.output
    result = invoke("plugins", "info", "image")
    assert result.exit_code == 0 and "digits (default)" in result.output


def test_plugins_ls_says_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = discover()
    monkeypatch.setattr(found, "broken", [BrokenPlugin("odd", "odd-dist", "0.1", "ImportError: no")])
    monkeypatch.setattr(found, "clashes", [Clash("modality", "toy", (("a-dist", "1"), ("b-dist", "2")))])
    result = invoke("plugins", "ls")
    assert result.exit_code == 0 and "image" in result.output
    assert "plugin 'odd' of odd-dist 0.1 is broken: ImportError: no" in result.output
    assert "modality 'toy' is offered by a-dist 1 and b-dist 2: uninstall one of them" in result.output


def test_a_plugins_command_is_listed_and_runs(tmp_path: Path) -> None:
    (tmp_path / "greet_entry.py").write_text(
        "from nextscale.hookspecs import CommandSpec, hookimpl\n"
        "@hookimpl\ndef nextscale_commands():\n"
        "    return [CommandSpec('greet', 'Say hello.', 'greet_command:greet'),\n"
        "            CommandSpec('train', 'Mine.', 'greet_command:greet')]\n"
    )
    (tmp_path / "greet_command.py").write_text("def greet(name: str):\n    print('hello', name)\n")
    info = tmp_path / "greet-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nextscale]\ngreet = greet_entry\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    listed = nextscale("--help", PYTHONPATH=path)
    assert "greet" in listed.stdout and "Say hello." in listed.stdout and "Mine." not in listed.stdout
    assert nextscale("greet", "you", PYTHONPATH=path).stdout == "hello you\n"
    assert "command 'train' of a plugin is not used" in nextscale("plugins", "ls", PYTHONPATH=path).stdout


# Commands pass their arguments on. The functions that they call are replaced; training itself is tested elsewhere.


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple]:
    calls: list[tuple] = []
    run = importlib.import_module("nextscale.training.run")
    monkeypatch.setattr(run, "train", lambda *arguments: calls.append(arguments))
    describing = importlib.import_module("nextscale.training.describe")
    monkeypatch.setattr(describing, "describe", lambda config: {"tokens": {"scales": [1, 4]}, "seconds": 61.5})
    monkeypatch.chdir(tmp_path)
    return calls


def test_train_names_its_folder(trained: list[tuple]) -> None:
    for arguments, folder in [
        ([], "runs/digits"),
        (["--name", "a"], "runs/a"),
        (["--out", "b/c"], "b/c"),
        (["-p", "none"], "runs/image"),
    ]:
        result = invoke("train", *arguments, "seed=4", "--stage", "tokenizer")
        assert result.exit_code == 0, result.output
        config, where, stage, resume, _ = trained[-1]
        assert (config.seed, where, stage, resume) == (4, Path(folder), "tokenizer", None)


def test_train_resumes_with_the_runs_own_configuration(trained: list[tuple]) -> None:
    folder = Path("runs/digits")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(invoke("config", "show", "-p", "digits", "seed=11").output)
    assert invoke("train", "--resume", "auto", "transformer.depth=3").exit_code == 0
    config, where, stage, resume, _ = trained[-1]
    assert (config.seed, config.transformer.depth, where, stage, resume) == (11, 3, folder, "all", "auto")
    checkpoint = folder / "checkpoints/tokenizer/step-5"
    assert invoke("train", "--resume", str(checkpoint)).exit_code == 0
    config, where, _, resume, _ = trained[-1]
    assert (config.seed, where, resume) == (11, folder, str(checkpoint))
    result = invoke("train", "--resume", "auto", "-p", "none", "--out", str(folder))
    assert result.exit_code == 2 and "has preset 'digits', not 'none'" in result.stderr


def test_train_resume_auto_starts_a_new_run_if_there_is_none(trained: list[tuple]) -> None:
    assert invoke("train", "--resume", "auto", "--name", "new", "seed=2").exit_code == 0
    assert (trained[-1][0].seed, trained[-1][1]) == (2, Path("runs/new"))


def test_train_dry_run_shows_and_stops(trained: list[tuple]) -> None:
    result = invoke("train", "--dry-run", "seed=4")
    assert result.exit_code == 0 and trained == [] and not Path("runs").exists()
    settings, _, table = result.output.partition("\n\n")
    assert yaml.safe_load(settings)["seed"] == 4
    assert "tokens.scales" in table and "1 4" in table and "61.5" in table


def test_sample_passes_settings_and_conditions_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nextscale as package

    model = FakeModel()
    monkeypatch.setattr(package, "load", lambda run, **options: model, raising=False)
    result = invoke(
        "sample", str(tmp_path), "-n", "4", "--seed", "7", "label=3", "guidance=2", "top_k=4,2", "--no-files"
    )
    assert result.exit_code == 0, result.output
    assert model.asked == {
        "number": 4, "seed": 7, "sampling": {"guidance": 2.0, "top_k": (4, 2)}, "conditions": {"label": "3"},
        "return_steps": 8, "batch_size": 64,
    }  # fmt: skip
    folder = tmp_path / "samples" / "seed-7"
    assert result.output.split() == [str(folder / "grid.png"), str(folder / "film.png")]
    result = invoke("sample", str(tmp_path), "guidnce=2")
    assert result.exit_code == 2 and "did you mean 'guidance'?" in result.stderr


class FakeModel:
    """Records what it was asked for; writes nothing."""

    def __init__(self) -> None:
        names = ("zero", "one", "two", "three")
        self.conditions = (ConditionSpec(name="label", size=12, names=names),)
        self.tokenizer = SimpleNamespace(adaptive=False, schedule=lambda: Schedule.of([(1, 1), (2, 3)]))
        self.modality, self.description = self, {}
        self.asked: dict[str, Any] = {}

    def stream(self, number: int, **asked: Any) -> Any:
        from nextscale.data import Samples

        self.asked = {"number": number, **asked}
        samples = torch.zeros(number, 1)
        yield Samples(samples, [samples, samples], {"label": torch.tensor([3, 3, 11, 3])})

    def sampling(self, overrides: Any) -> SamplingConfig:
        return SamplingConfig.model_validate(overrides)

    def concatenate(self, batches: list[Any]) -> Any:
        return batches[0]

    def write_grid(self, samples: Any, path: Path, description: Any, columns: Any = None, captions: Any = None) -> Path:
        assert captions == ["three", "three", "label 11", "three"]
        return path.with_suffix(".png")

    def write_film(self, steps: Any, path: Path, description: Any, captions: Any = None) -> Path:
        assert captions == ["scale 0 · 1x1 · 1 token", "scale 1 · 2x3 · 6 tokens"]
        return path.with_suffix(".png")


def test_results_are_printed_beside_their_floors(capsys: pytest.CaptureFixture[str]) -> None:
    results = {"psnr": 27.123456, "guidance 2": {"kid": 0.5, "kid_floor": 0.125}, "used": [1.0, 0.75], "n": 12345}
    tables.print_results(results)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["psnr", "27.12"] in lines
    assert ["guidance", "2.kid", "0.5", "0.125"] in lines
    assert ["used", "1", "0.75"] in lines and ["n", "12,345"] in lines
    assert not any("kid_floor" in word for line in lines for word in line)


def test_doctor_fails_if_something_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    import nextscale_cli.doctor as doctor

    found = discover()
    monkeypatch.setattr(found, "broken", [])
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    good = invoke("doctor")
    assert "pip install 'nextscale[track]'" in good.output, "a missing extra is no fault"
    assert good.exit_code == 0, good.output
    monkeypatch.setattr(found, "broken", [BrokenPlugin("odd", "odd-dist", "0.1", "ImportError: no")])
    bad = invoke("doctor")
    assert bad.exit_code == 1 and "! plugin 'odd' of odd-dist 0.1 is broken" in bad.output


def test_the_same_notice_is_shown_once():
    code = (
        "import logging\nfrom nextscale_cli.errors import show_notices_once\nshow_notices_once()\n"
        "for _ in range(2):\n    logging.getLogger('a').warning('skipped %d files', 2)\n"
        "logging.getLogger('b').warning('skipped 3 files')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines() == ["skipped 2 files", "skipped 3 files"]
