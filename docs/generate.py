"""Pages that are generated from the code: every command, every setting, and the public surface."""

from __future__ import annotations

from pathlib import Path


def write_pages(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in (("commands", commands()), ("settings", settings()), ("api", api())):
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def commands() -> str:
    """The help of every command, as the command line prints it."""
    from nextscale_cli.main import COMMANDS, build

    parts = ["# Command line\n", "What `nextscale COMMAND --help` prints.\n"]
    for name, (path, _) in COMMANDS.items():
        command = build(name, path)
        groups = command.list_commands(None) if hasattr(command, "list_commands") else []
        for words in ([name], *([name, group] for group in groups)):
            parts += [f"## `nextscale {' '.join(words)}`\n", "```text", _help(words), "```\n"]
    return "\n".join(parts)


def _help(words: list[str]) -> str:
    from typer.testing import CliRunner

    from nextscale_cli.main import app

    text = CliRunner().invoke(app, [*words, "--help"], prog_name="nextscale").output
    return text.strip()


def settings() -> str:
    """Every setting of every built-in modality with its default and its description."""
    from nextscale.config.dump import dump_config
    from nextscale.config.run import load_config

    parts = [
        "# Every setting\n",
        "Set any of these as `key=value`, with dots between levels: `training.transformer.lr=1e-3`. Presets and YAML",
        "files have the same keys. `nextscale config show -m MODALITY -p PRESET` prints this page for a preset.\n",
    ]
    for name in ("image", "video", "graph"):
        text = dump_config(load_config(name, "none"), comments=True)
        parts += [f"## Modality {name}\n", "```yaml", text.rstrip(), "```\n"]
    return "\n".join(parts)


def api() -> str:
    """Reference of the public surface, from its docstrings."""
    from nextscale import plugin

    parts = [
        "# API reference\n",
        "## For users\n",
        "```{eval-rst}",
        ".. autofunction:: nextscale.api.load",
        ".. autofunction:: nextscale.training.run.train",
        ".. autoclass:: nextscale.api.Model",
        "   :members: generate, edit, complete",
        "```\n",
        "## For plugin authors\n",
        "Import everything here from `nextscale.plugin`. [The public surface](../PUBLIC_API.md) lists it by purpose.\n",
    ]
    for name in sorted(plugin.__all__, key=str.lower):
        found, module = getattr(plugin, name), plugin._MODULE_OF[name]
        if isinstance(found, type):
            members = "" if issubclass(found, BaseException) else "\n   :members:\n   :show-inheritance:"
            directive = f".. autoclass:: {module}.{name}{members}"
        elif callable(found) and hasattr(found, "__code__"):
            directive = f".. autofunction:: {module}.{name}"
        else:
            continue
        parts += [f"### {name}\n", "```{eval-rst}", directive, "```\n"]
    return "\n".join(parts)
