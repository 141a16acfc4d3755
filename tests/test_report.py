"""The report of a run: complete, self-contained, and harmless whatever the run holds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import nextscale.training.run as run_module
from nextscale.config.run import load_config
from nextscale.errors import NextscaleWarning
from nextscale.evaluation import evaluate
from nextscale.report.contents import differences, read_losses, read_run
from nextscale.report.page import page, write_report
from nextscale.report.pictures import embedded
from nextscale.report.plot import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, line_plot
from nextscale.training.run import train
from nextscale.training.signals import Interrupted
from nextscale_cli.main import app

Settings = Callable[..., list[str]]
SECTIONS = ["Samples", "Losses", "Over time", "Results", "Data", "Settings", "Environment"]


class Page(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.tags and self.tags[-1][0] == "h2":
            self.headings.append(data)

    def attributes(self, *names: str) -> list[str]:
        return [str(values[name]) for _, values in self.tags for name in names if name in values]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def fetches_nothing(text: str, shown: Page) -> bool:
    """Neither a script, nor anything that a browser would fetch."""
    outside = [link for link in shown.attributes("src", "href", "srcset", "data", "action") if link[:5] != "data:"]
    handlers = [name for _, values in shown.tags for name in values if name.startswith("on")]
    return not (
        outside
        or handlers
        or {"script", "iframe", "object", "embed", "form"} & {tag for tag, _ in shown.tags}
        or re.search(r"@import|url\(", text)
    )


@pytest.fixture(scope="module")
def run(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "a run"
    drawn = {f"training.{stage}.samples_every": 2 for stage in ("tokenizer", "transformer")}
    train(load_config("image", overrides=tiny(**drawn)), folder)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def refused(*arguments: str | Path) -> str:
    """The one line that the command line prints."""
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1, result.output
    return result.stderr


def test_training_leaves_a_report(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    shown = Page(text)
    assert shown.headings == SECTIONS and fetches_nothing(text, shown)
    tags = [tag for tag, _ in shown.tags]
    assert tags.count("svg") == 3, "the losses of two stages, and those of the transformer by scale"
    assert tags.count("polyline") == 2 + 2 + 4
    assert tags.count("img") == 2 + 3 + 3, "samples, reconstructions, and three steps of each stage"
    for word in ("modality image, preset digits", "step 2", "step 6", "train samples96", "validation samples32"):
        assert word in shown.words
    assert "condition labelclass, 10" in shown.words and f"torch{torch.__version__}" in shown.words
    assert "nextscale eval" in shown.words, "how to get results"
    assert "not trained yet" not in shown.words
    for _, values in shown.tags:
        if "http-equiv" in values:
            assert values["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not list(run.glob(".*"))


def test_settings_that_differ_from_the_defaults(run: Path) -> None:
    config = read_run(run).config
    changed = {key: (value, usual) for key, value, usual in differences(config, type(config)(modality="image"))}
    assert changed["transformer.width"][0] == 32 and changed["transformer.width"][1] != 32
    assert "training.transformer.log_every" in changed and "seed" not in changed
    assert all(value != usual for value, usual in changed.values())


def test_eval_adds_its_results(copy: Path) -> None:
    results = evaluate(copy, device="cpu", reconstruction_only=True)
    left = json.loads((copy / "eval.json").read_text())
    assert left["measured"].keys() >= {"date", "nextscale", "split", "samples", "guidance", "seed", "repeats"}
    shown = read(copy / "report.html")
    assert f"psnr{results['reconstruction']['psnr']:.4g}" in shown.words and "used_total" in shown.words
    assert "nextscale eval" not in shown.words


def test_the_command_writes_it_anywhere(copy: Path, tmp_path: Path) -> None:
    for arguments, path in ((), copy / "report.html"), (("--out", str(tmp_path / "b.html")), tmp_path / "b.html"):
        path.unlink(missing_ok=True)
        result = CliRunner().invoke(app, ["report", str(copy), *arguments])
        assert result.exit_code == 0 and result.stdout == f"{path}\n"
        assert read(path).headings == SECTIONS
    (tmp_path / "file").write_text("in the way")
    assert "was not saved" in refused(copy, "--out", tmp_path / "file" / "report.html")


def test_names_are_text_and_never_markup(copy: Path) -> None:
    evil = '</td></style></title><script>alert(1)</script><img src="http://x.invalid/" onerror="a">&amp;\udcff'
    data = {"samples": {evil: 3}, "conditions": [{"name": evil, "kind": evil, "size": 1, "names": [evil]}]}
    (copy / "data.json").write_text(json.dumps(data | {"description": {evil: [evil]}}).replace("\\udcff", ""))
    (copy / "env.json").write_text(json.dumps({evil: evil, "command": [evil]}).replace("\\udcff", ""))
    (copy / "eval.json").write_text(json.dumps({evil: {evil: evil}, "measured": {evil: 1}}).replace("\\udcff", ""))
    with (copy / "metrics.jsonl").open("a") as file:
        line = {"stage": "transformer", "step": 8, "kind": "validation", "loss": 1.0, f"loss/{evil[:-1]}": 2.0}
        file.write(json.dumps(line) + "\n")
    folder = copy.rename(copy.parent / evil.replace("/", "-"))
    Image.new("L", (4, 4)).save(folder / "samples" / "transformer-00000009.png")
    path = write_report(folder)
    text = path.read_text(encoding="utf-8")
    shown = Page(text)
    assert fetches_nothing(text, shown) and shown.headings == SECTIONS
    assert shown.words.count("<script>alert(1)") >= 8 and "step 9" in shown.words


def test_a_run_that_is_not_finished(copy: Path) -> None:
    for name in ("transformer", "checkpoints/transformer", "samples/samples.png"):
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    assert (
        f"The transformer is not trained yet. To go on: nextscale train --out {copy}" in read(write_report(copy)).words
    )
    for entry in copy.iterdir():  # as a process leaves it that was killed at once
        if entry.name != "config.yaml":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shown = read(write_report(copy))
    assert shown.headings == ["Losses", "Results", "Settings"]
    assert (
        "No losses are recorded yet" in shown.words and "tokenizer and the transformer are not trained" in shown.words
    )


def test_damage_gives_one_line(copy: Path, tmp_path: Path) -> None:
    before = (copy / "report.html").read_bytes()
    assert "no such folder" in refused(tmp_path / "missing")
    for name, content, what in (
        ("eval.json", b"[1, 2]", r"eval.json is damaged: it should hold a mapping"),
        ("env.json", b"{", r"env.json is damaged"),
        ("data.json", b"\xff", r"data.json is damaged"),
        ("metrics.jsonl", b"\x00\n[]\n{}\n", r"metrics.jsonl is damaged: none of its 3 lines"),
        ("config.yaml", b"modality: image\n", r"config.yaml is damaged"),
    ):
        kept = (copy / name).read_bytes() if (copy / name).exists() else None
        (copy / name).write_bytes(content)
        assert re.search(what, refused(copy))
        (copy / name).unlink() if kept is None else (copy / name).write_bytes(kept)
    (copy / "config.yaml").unlink()
    assert "config.yaml" in refused(copy)
    assert (copy / "report.html").read_bytes() == before


def test_a_broken_line_or_picture_costs_only_itself(copy: Path) -> None:
    whole = read_losses(copy / "metrics.jsonl")
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "transformer", "step": 7, "ki')
    assert read_losses(copy / "metrics.jsonl") == whole
    (copy / "samples" / "samples.png").write_bytes(b"no picture")
    shown = read(write_report(copy))
    assert "samples.png cannot be shown" in shown.words and shown.headings == SECTIONS


def test_pictures_are_made_smaller_not_larger(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((900, 300), 64).save(path)
    for side, size in ((1000, (900, 300)), (450, (450, 150))):
        (values,) = [values for tag, values in Page(embedded(path, "c", side)).tags if tag == "img"]
        assert (values["width"], values["height"]) == tuple(map(str, size))
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert "data:image/gif" in embedded(tmp_path / "a.gif", "c", 100)
    assert "data:image/png" in embedded(tmp_path / "a.gif", "c", 100, still=True)


def test_a_report_that_fails_costs_no_run(
    tiny: Settings, tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Path) -> Path:
        raise KeyError("a bug")

    monkeypatch.setattr(run_module, "write_report", broken)
    with pytest.warns(NextscaleWarning, match=r"no report at .*report.html \(KeyError: .*\); the run is whole"):
        train(load_config("image", overrides=tiny()), tmp_path / "run")
    file = "transformer/model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (tiny_run / file).read_bytes()


def test_an_interrupted_run_leaves_one(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Any) -> None:
        raise Interrupted("stop", 130)

    monkeypatch.setattr(run_module._Run, "train_transformer", stopped)
    with pytest.raises(Interrupted, match="stop"):
        train(load_config("image", overrides=tiny()), tmp_path / "run")
    assert "The transformer is not trained yet" in read(tmp_path / "run" / "report.html").words


def test_a_run_of_the_last_release_says_nothing_of_its_data(copy: Path) -> None:
    (copy / "data.json").unlink()
    shown = read(write_report(copy))
    assert shown.headings == SECTIONS and "condition label" in shown.words and "train samples" not in shown.words


# Plots

NUMBERS = st.floats(-1e30, 1e30) | st.floats(0, 10) | st.sampled_from([0.0, 1e-300, 5e-324, 0.3, 1e30])


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 10**9), NUMBERS), max_size=20), max_size=4),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20),
)
@settings(max_examples=200, deadline=None)
def test_a_plot_of_any_numbers_stays_in_its_frame(curves: list[list[tuple[int, float]]], name: str) -> None:
    text = line_plot(name, [Curve(name, sorted(points)) for points in curves])
    if not any(curves):
        assert text == ""
        return
    figure = ElementTree.fromstring(text)
    lines = figure.findall(".//polyline")
    assert len(lines) == sum(map(bool, curves))
    for line in lines:
        for place in line.attrib["points"].split():
            x, y = map(float, place.split(","))
            assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 and TOP - 0.1 <= y <= HEIGHT
    ticks = [element for element in figure.findall(".//path") if element.attrib["class"] == "grid"]
    assert len(ticks) <= 12
    assert "".join(figure.find("ul").itertext()).count(name) >= len(lines)  # type: ignore[union-attr]


def test_ticks_are_round_and_long_curves_short() -> None:
    figure = ElementTree.fromstring(line_plot("a", [Curve("b", [(x, 1 + x / 1000) for x in range(5001)])]))
    texts = [element.text for element in figure.findall(".//text")]
    assert {"0", "1,000", "5,000", "2", "6"} <= set(texts)
    assert len(figure.find(".//polyline").attrib["points"].split()) <= 300  # type: ignore[union-attr]
    figure = ElementTree.fromstring(line_plot("a", [Curve("b", [(1, 0.01), (2, 10.0)])]))
    assert {"0.1", "1", "10"} <= {element.text for element in figure.findall(".//text")}
    assert figure.find("h3").text == "a (logarithmic)"  # type: ignore[union-attr]


def test_the_page_of_a_copy_is_the_page_of_the_run(run: Path, copy: Path) -> None:
    """Nothing in it depends on where the run lies, but its name."""
    one, other = read_run(run), read_run(copy)
    dated = re.compile(r"report of [^<]*")
    assert dated.sub("", page(replace(other, folder=run, results={}))) == dated.sub("", page(replace(one, results={})))
