"""The layers of the code: each package imports only from lower floors, and plugins use only the public surface."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nextscale
from nextscale import plugin

ROOT = Path(__file__).parent.parent
FLOORS = [
    ["errors"],
    ["device", "memory", "meta", "distributed", "hub", "remote"],
    ["randomness"],
    ["tokens"],
    ["conditioning"],
    ["captions", "data"],
    ["objective", "callbacks"],
    ["modality"],
    ["hookspecs"],
    ["plugins"],
    ["config"],
    ["grid", "transformer"],
    ["storage"],
    ["sampling", "report", "figures"],
    ["training"],
    ["api"],
    ["evaluation", "provenance", "testing", "sharing", "start", "scaling"],
    ["bench"],
    ["toolkit"],
    ["plugin", "__init__"],
]
"""From the bottom to the top. A module imports only from its own package and from lower floors. toolkit is for plugins
only."""
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "tests" not in path.parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports: at its top, in functions, and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                # `from nextscale import plugins` names a module, `from nextscale.data import Batch` a member of one.
                yield node.lineno, f"{node.module}.{alias.name}"


def package_of(name: str) -> str:
    """``nextscale.tokens.space.Codes`` is in the package ``tokens``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else "__init__"


def test_every_package_has_a_floor() -> None:
    there = {
        path.stem for path in (ROOT / "nextscale").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there == set(FLOOR)


def test_each_package_imports_only_from_lower_floors() -> None:
    wrong = []
    for path in modules("nextscale"):
        here = path.relative_to(ROOT / "nextscale").parts[0].removesuffix(".py")
        for line, name in imports(path):
            if name.split(".")[0] in ("nextscale_cli", "nextscale_image", "nextscale_video", "nextscale_graph"):
                wrong.append(f"{path}:{line} imports {name}")
            if name.split(".")[0] != "nextscale":
                continue
            there = package_of(name)
            if there != here and FLOOR[there] >= FLOOR[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports from the higher floor {there} ({name})")
    assert not wrong, "\n".join(wrong)


def test_there_are_no_import_cycles() -> None:
    edges: dict[str, set[str]] = {}
    for path in modules("nextscale", "cli", "plugins"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        start = next(i for i, part in enumerate(parts) if part.startswith("nextscale"))
        here = ".".join(parts[start:]).removesuffix(".__init__")
        edges[here] = {name for _, name in imports(path)}
    known = set(edges)
    graph = {
        here: {found for name in names if (found := name if name in known else name.rpartition(".")[0]) in known}
        for here, names in edges.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"an import cycle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_the_core_names_no_modality() -> None:
    for path in modules("nextscale"):
        for line, name in imports(path):
            assert not name.startswith(("nextscale_image", "nextscale_video", "nextscale_graph")), f"{path}:{line}"


def test_the_core_never_imports_the_toolkit() -> None:
    for path in modules("nextscale"):
        if "toolkit" not in path.parts:
            assert not [name for _, name in imports(path) if name.startswith("nextscale.toolkit")], path


def test_built_in_plugins_import_the_public_surface_only() -> None:
    """They prove that the public surface suffices."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules("plugins")
        for line, name in imports(path)
        if name.split(".")[0] == "nextscale" and not name.startswith("nextscale.plugin.")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_public_surface_is_there_and_documented() -> None:
    listed = (ROOT / "docs" / "PUBLIC_API.md").read_text()
    for name in plugin.__all__:
        assert getattr(plugin, name) is not None
        assert f"`{name}`" in listed, f"docs/PUBLIC_API.md does not list {name}"
    for name in nextscale.__all__:
        assert f"`{name}`" in listed, f"docs/PUBLIC_API.md does not list {name}"
    with pytest.raises(AttributeError, match="not part of the public surface"):
        _ = plugin.KeyValueCache
