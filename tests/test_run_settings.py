"""A run's own config.yaml is read whole or refused by name; runs of the last release lack only what is declared."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from nextscale.config.dump import dump_run_config
from nextscale.config.run import load_config, load_run_config
from nextscale.errors import ConfigError, NextscaleError

MODALITIES = ("image", "video", "graph")


def leaves(settings: Mapping, path: tuple[str, ...] = ()) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield ".".join((*path, key))


def remove(settings: dict, name: str) -> None:
    """Remove a setting, and its section if that holds nothing else."""
    first, _, rest = name.partition(".")
    if rest:
        remove(settings[first], rest)
    if not rest or not settings[first]:
        del settings[first]


def last_release(modality: str) -> set[str]:
    text = (Path(__file__).parent / "settings_0_1_0.txt").read_text()
    found = re.search(rf"^{modality}:\n((?:  .*\n)+)", text, re.M)
    assert found is not None
    return set(found[1].split())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(dump_run_config(load_config("image", "digits", None, ["seed=3", "sampling.top_k=7"])))
    return file


def test_what_a_run_writes_reads_back_equal(written: Path) -> None:
    config = load_run_config(written.parent)
    assert (config.seed, config.sampling.top_k) == (3, 7)
    assert dump_run_config(config) == written.read_text()


@pytest.mark.parametrize("modality", MODALITIES)
def test_runs_of_the_last_release_load(tmp_path: Path, modality: str) -> None:
    """If this fails for a new setting, add its name to ``added`` of its section."""
    config = load_config(modality, "none")
    settings = config.model_dump(mode="json")
    for name in {*leaves(settings)} - last_release(modality):
        remove(settings, name)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert load_run_config(tmp_path) == config


@pytest.mark.parametrize(
    "name", ["seed", "data.source", "tokenizer.quantizer.codes", "training.init", "sampling.tries"]
)
def test_a_missing_setting_is_named(written: Path, name: str) -> None:
    settings = yaml.safe_load(written.read_text())
    remove(settings, name)
    written.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=rf"config.yaml is damaged: it lacks {name}; restore it"):
        load_run_config(written)


def test_a_missing_or_emptied_section_is_named(written: Path) -> None:
    settings = yaml.safe_load(written.read_text())
    written.write_text(yaml.safe_dump({**settings, "sampling": None}))
    with pytest.raises(ConfigError, match=r"it lacks sampling\.guidance"):
        load_run_config(written)
    del settings["transformer"]
    written.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="it lacks transformer"):
        load_run_config(written)


@pytest.mark.parametrize("checksum", [True, False])
def test_every_cut_is_noticed(written: Path, checksum: bool) -> None:
    text = written.read_text()
    whole = text if checksum else text[: text.rindex("# sha256")]
    written.write_text(whole)
    load_run_config(written)
    cuts = [*range(0, len(whole) - 70, 97), *range(len(whole) - 100, len(whole))]
    without = text.rindex("# sha256")  # a cut of just the checksum leaves all settings
    for cut in cuts:
        written.write_text(whole[:cut])
        if cut != without:
            with pytest.raises(NextscaleError):
                load_run_config(written)


def test_every_changed_character_is_noticed(written: Path) -> None:
    text = written.read_text()
    end = text.rindex("# sha256")
    for place in range(0, end, 61):
        changed = "7" if text[place] != "7" else "8"
        written.write_text(text[:place] + changed + text[place + 1 :])
        with pytest.raises(NextscaleError):
            load_run_config(written)


def test_an_edited_file_says_what_to_do(written: Path) -> None:
    text = written.read_text().replace("seed: 3", "seed: 4")
    written.write_text(text)
    with pytest.raises(ConfigError, match=r"its checksum does not fit; .* \(if you edited it, delete its last line\)"):
        load_run_config(written)
    written.write_text(text[: text.rindex("# sha256")])
    assert load_run_config(written).seed == 4


def test_a_damaged_run_is_no_start_for_fine_tuning(written: Path) -> None:
    written.write_text(written.read_text()[:400])
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(start=written.parent)
