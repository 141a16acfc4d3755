"""Discovery with fake distributions: a broken, clashing, misspelt or outdated plugin is named, and the rest works."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nextscale import hookspecs, plugins
from nextscale.callbacks import TrainingCallback, TrainingEvent
from nextscale.errors import NextscaleError, PluginError
from nextscale.plugins import discover, load_object, modality, modality_config

HEADER = """
from pathlib import Path
from nextscale.hookspecs import CommandSpec, FormatSpec, hookimpl
from nextscale.modality import ModalitySpec
from nextscale.callbacks import TrainingCallback

def spec(name, **changes):
    fields = dict(name=name, summary="s", config="m:C", implementation="m:M", presets=Path("."), default_preset="p")
    return ModalitySpec(**{**fields, **changes})
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with one entry module on sys.path: ``install("dist", "1.0", "entry", source)``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def install(distribution: str, version: str, entry: str, source: str) -> None:
        module = f"{distribution.replace('-', '_')}_entry"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(HEADER + textwrap.dedent(source), encoding="utf-8")
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[nextscale]\n{entry} = {module}\n")
        importlib.invalidate_caches()
        discover.cache_clear()

    discover.cache_clear()
    yield install
    discover.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


GOOD = """
    @hookimpl
    def nextscale_modalities():
        return [spec("good")]
"""


def test_a_good_plugin_works_beside_the_built_in_one(install: Install) -> None:
    install("good-dist", "1.2", "good", GOOD)
    found = discover()
    assert not found.broken and not found.clashes
    assert {"image", "good"} <= set(found.modalities)
    assert (found.modalities["good"].distribution, found.modalities["good"].version) == ("good-dist", "1.2")
    assert found.get("good").name == "good"
    assert plugins.third_party()


def test_unknown_modality_names_the_nearest(install: Install) -> None:
    with pytest.raises(PluginError, match=r"unknown modality 'imgae'; did you mean 'image'\?"):
        discover().get("imgae")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_module_xyz", "ModuleNotFoundError: No module named 'no_such_module_xyz'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("@hookimpl\ndef nextscale_modalities(nothing): return []", "PluginValidationError"),
        ("@hookimpl\ndef nextscale_modalities(): raise ValueError('no')", "raised ValueError: no"),
        ("@hookimpl\ndef nextscale_modalities():\n    yield 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("@hookimpl\ndef nextscale_modalities(): return spec('x')", "not an iterable of ModalitySpec"),
        ("@hookimpl\ndef nextscale_modalities(): return ['x']", "returned a str, not a ModalitySpec"),
        (
            "@hookimpl\ndef nextscale_modalities(): return [spec('x', api_version=99)]",
            "interface version 99; this nextscale has version 2: upgrade nextscale",
        ),
        (
            "@hookimpl\ndef nextscale_modalities(): return [spec('x', api_version=0)]",
            "interface version 0; this nextscale has version 2: upgrade the plugin",
        ),
        (
            "@hookimpl\ndef nextscale_modalities(): return [spec('x', presets='here')]",
            "presets is a str, not a pathlib.Path",
        ),
        (
            "@hookimpl\ndef nextscale_modalitys(): return []",
            "unknown hook 'nextscale_modalitys'; did you mean 'nextscale_modalities'?",
        ),
        ("def nextscale_modalitys(): return []", "did you mean 'nextscale_modalities'?"),
        ("def nextscale_modalities(): return []", "nextscale_modalities lacks @hookimpl"),
        (
            "@hookimpl\ndef nextscale_callbacks(config, folder=None): return []",
            "arguments with a default are never passed; remove the default of folder",
        ),
    ],
)
def test_broken_plugin_is_named_and_the_rest_works(install: Install, source: str, error: str) -> None:
    install("bad-dist", "0.3", "bad", source)
    install("good-dist", "1.2", "good", GOOD)
    found = discover()
    (broken,) = found.broken
    assert (broken.name, broken.distribution, broken.version) == ("bad", "bad-dist", "0.3")
    assert error in broken.error
    assert "\n" not in str(broken)
    assert {"image", "good"} <= set(found.modalities)
    assert "x" not in found.modalities
    with pytest.raises(PluginError, match=r"plugin 'bad' of bad-dist 0\.3 is broken: "):
        found.get("bad")


def test_a_misspelt_hook_does_not_disable_the_plugins_others(install: Install) -> None:
    install("half-dist", "1", "half", GOOD + "\n    @hookimpl\n    def nextscale_comands(): return []")
    found = discover()
    assert "good" in found.modalities
    assert ["did you mean 'nextscale_commands'" in broken.error for broken in found.broken] == [True]


def test_neither_of_two_clashing_plugins_is_used(install: Install) -> None:
    install("first-dist", "1.0", "first", GOOD)
    install("second-dist", "2.0", "second", GOOD)
    found = discover()
    assert "good" not in found.modalities and "image" in found.modalities
    assert [clash.offers for clash in found.clashes] == [(("first-dist", "1.0"), ("second-dist", "2.0"))]
    with pytest.raises(PluginError, match=r"'good' is offered by first-dist 1\.0 and second-dist 2\.0: uninstall"):
        found.get("good")


def test_a_plugin_can_clash_with_the_built_in_modality(install: Install) -> None:
    install("rival-dist", "3.1", "rival", GOOD.replace("good", "image"))
    with pytest.raises(PluginError, match=r"nextscale .* and rival-dist 3\.1"):
        modality_config("image")


def test_hook_nextscale_modalities(install: Install) -> None:
    install("two-dist", "1", "two", "@hookimpl\ndef nextscale_modalities():\n    yield spec('a')\n    yield spec('b')")
    assert {"a", "b"} <= set(discover().modalities)


def test_hook_nextscale_commands(install: Install) -> None:
    source = """
    @hookimpl
    def nextscale_commands():
        return [CommandSpec("{}", "Do it.", "mod:do"), CommandSpec("same", "", "")]
    """
    install("b-dist", "1", "b", source.format("beta"))
    install("a-dist", "1", "a", source.format("alpha"))
    found = discover()
    assert [command.name for command in found.commands()] == ["alpha", "beta"]
    assert [(clash.kind, clash.name) for clash in found.clashes] == [("command", "same")]


def test_hook_nextscale_formats(install: Install) -> None:
    source = """
    @hookimpl
    def nextscale_formats():
        return [FormatSpec("{}", "Of ours.", "mod:read"), FormatSpec("same", "")]
    """
    install("b-dist", "1", "b", source.format("beta"))
    install("a-dist", "1", "a", source.format("alpha"))
    found = discover()
    assert [spec.name for spec in found.formats()] == ["alpha", "beta", "var"]
    assert [(clash.kind, clash.name) for clash in found.clashes] == [("format", "same")]


def test_hook_nextscale_callbacks(install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = """
    class Listener(TrainingCallback):
        def __init__(self, *seen): self.seen = seen

    @hookimpl
    def nextscale_callbacks(folder, config):
        return [Listener(config, folder)]
    """
    install("a-dist", "1", "a", "@hookimpl\ndef nextscale_callbacks(config): raise KeyError('lost')")
    install("b-dist", "1", "b", good)
    install("c-dist", "1", "c", "@hookimpl\ndef nextscale_callbacks(): return [3]")
    found = discover()
    assert not found.broken, "the hook is only called when a run begins"
    config = object()
    (callback,) = found.callbacks(config, tmp_path)  # type: ignore[arg-type]
    assert callback.seen == (config, tmp_path)  # type: ignore[attr-defined]
    assert [broken.distribution for broken in found.broken] == ["a-dist", "c-dist"]
    assert "lost" in caplog.text and "not a TrainingCallback" in caplog.text
    found.callbacks(config, tmp_path)  # type: ignore[arg-type]
    assert len(found.broken) == 2, "a second run does not report them again"


def test_every_hook_is_documented_and_tested() -> None:
    specs = [value for value in vars(hookspecs).values() if hasattr(value, "nextscale_spec")]
    assert len(specs) >= 3
    for spec in specs:
        assert spec.__name__.startswith("nextscale_")
        assert len((spec.__doc__ or "").split()) > 10, f"{spec.__name__} is not documented"
        assert f"test_hook_{spec.__name__}" in globals(), f"{spec.__name__} is not tested"


def test_callbacks_do_nothing_unless_overridden() -> None:
    class Steps(TrainingCallback):
        def __init__(self) -> None:
            self.steps: list[int] = []

        def on_step(self, event: TrainingEvent) -> None:
            self.steps.append(event.step)

    listener, event = Steps(), TrainingEvent("tokenizer", 3, {"loss": 1.0})
    for method in (listener.on_step, listener.on_checkpoint, listener.on_samples):
        assert method(event) is None
    assert listener.steps == [3]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("json", "is not a dotted path 'package.module:attribute'"),
        ("json:", "is not a dotted path"),
        ("no_such_module_xyz:a", "cannot import no_such_module_xyz .*ModuleNotFoundError"),
        ("json:lods", "unknown attribute 'lods'; did you mean 'loads'"),
    ],
)
def test_load_object_says_what_is_wrong(path: str, error: str) -> None:
    with pytest.raises(PluginError, match=error):
        load_object(path)


def test_load_object_follows_attributes() -> None:
    import json

    assert load_object("json:JSONDecoder.decode") is json.JSONDecoder.decode


def test_implementation_of_the_wrong_kind(install: Install) -> None:
    install(
        "odd-dist",
        "1",
        "odd",
        "@hookimpl\ndef nextscale_modalities(): return [spec('odd', config='json:loads', implementation='json:loads')]",
    )
    with pytest.raises(PluginError, match=r"json:loads is not a subclass of nextscale\.modality\.Modality"):
        modality("odd")
    with pytest.raises(PluginError, match=r"json:loads is a function, not a nextscale\.modality\.ModalityConfig"):
        modality_config("odd")


def test_discovery_and_configuration_import_no_torch() -> None:
    code = (
        "import sys, nextscale, nextscale.hookspecs, nextscale.callbacks\n"
        "from nextscale.plugins import discover, modality_config\n"
        "modality_config('image'); nextscale.__version__; dir(nextscale)\n"
        "assert discover().modalities and not discover().broken\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


FAULTY = """
    class C: ...

    @hookimpl
    def nextscale_modalities():
        return [spec("faulty", implementation=__name__ + ":M")]

    def __getattr__(name):  # on first use, as the entry module itself must not import torch
        from nextscale.modality import Modality

        class M(Modality):
            name = "faulty"
            def open_data(self, config): return {}[config]
            def build_tokenizer(self, config, description): return [self.open_data(config)]
            def write_grid(self, samples, path, description, columns=None): raise config_error()
            def write_film(self, steps, path, description): raise OSError(28, "No space left on device", "x.png")
            tokenizer_objectives = concatenate = write_samples = None

        def config_error():
            from nextscale.errors import ConfigError
            return ConfigError("told")

        M.__abstractmethods__ = frozenset()
        if name == "M":
            return M
        raise AttributeError(name)
"""


def test_what_a_plugins_method_raises_names_plugin_and_method(install: Install) -> None:
    install("faulty-dist", "1.2", "faulty", FAULTY)
    made: Any = modality("faulty")
    message = (
        r"^modality faulty \(faulty-dist 1\.2\): open_data raised KeyError: 'x' "
        r"\(set NEXTSCALE_TRACEBACK=1 for the traceback\)$"
    )
    with pytest.raises(PluginError, match=message) as caught:
        made.open_data("x")
    assert isinstance(caught.value.__cause__, KeyError), "the traceback shows what happened"
    with pytest.raises(PluginError, match=message):
        made.build_tokenizer("x", {})  # the innermost method is named
    with pytest.raises(NextscaleError, match=r"^told$"):
        made.write_grid(None, None, {})
    with pytest.raises(OSError, match="No space left"):
        made.write_film([], None, {})


def test_methods_are_looked_up_when_they_are_called(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("faulty-dist", "1.2", "faulty", FAULTY)
    made: Any = modality("faulty")
    monkeypatch.setattr(type(made), "open_data", lambda self, config: config)
    assert made.open_data(3) == 3 and made.build_tokenizer(4, {}) == [4]


def test_where_in_a_plugin_something_was_raised() -> None:
    from nextscale_image import config as some_module

    code = compile("def take():\n    return 1 / 0", "source.py", "exec")
    names: dict[str, Any] = {"__name__": some_module.__name__}
    exec(code, names)
    try:
        names["take"]()
    except ZeroDivisionError as error:
        place = plugins.place_in_plugin(error)
    assert place is not None and place.startswith("nextscale_image.config.take, of image (nextscale ")
    assert plugins.place_in_plugin(KeyError("x")) is None


def test_an_entry_module_that_imports_torch_is_reported(install: Install, tmp_path: Path) -> None:
    install("slow-dist", "1", "slow", "import torch\n" + textwrap.dedent(GOOD))
    code = "from nextscale.plugins import discover; found = discover(); print(*found.broken, sorted(found.modalities))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert "plugin 'slow' of slow-dist 1 is broken: its entry module slow_dist_entry imports torch" in result.stdout
    assert "'good'" in result.stdout, "it works all the same"
