"""A run's configuration: which layer wins, what the errors say, and that a dump reads back the same."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nextscale.config import run as runconfig
from nextscale.config.dump import dump_config
from nextscale.config.run import load_config, load_run_config, parse_section, run_config_model
from nextscale.config.sections import NoOptions, SamplingConfig, Section
from nextscale.config.tree import Tree
from nextscale.errors import ConfigError, NextscaleError, PluginError
from nextscale.modality import ModalityConfig, ModalitySpec
from nextscale.plugins import ModalityPlugin, Plugins


class SourceConfig(Section):
    shorthand: ClassVar[str] = "source"

    source: str = "built-in"
    """Where the data come from."""
    size: int | tuple[int, int] | None = None
    choice: Literal["no", "yes", 3] | None = None


class PartConfig(Section):
    codes: int = 4096
    decay: float = 0.5


class StepsConfig(Section):
    """How data are cut."""

    scales: tuple[int, ...] = (1, 2, 4)
    part: PartConfig = PartConfig(codes=128)
    names: tuple[str, ...] = ()


TOY = ModalityConfig(data=SourceConfig, tokenizer=StepsConfig, evaluation=NoOptions)


@pytest.fixture(autouse=True)
def toy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two toy modalities, so that nothing here depends on a plugin's presets."""
    presets = tmp_path_factory.mktemp("presets")
    (presets / "small.yaml").write_text(
        "# A small one.\nseed: 5\ntokenizer: {scales: [1, 3]}\ntransformer: {depth: 2}\n"
    )
    (presets / "large.yaml").write_text("transformer: {depth: 30}\n")
    (presets / "wrong.yaml").write_text("transformer: {deph: 30}\n")
    (presets / "nested.yaml").write_text("preset: small\n")
    specs = {name: ModalitySpec(name, "s", f"{__name__}:TOY", "x:Y", presets, "small") for name in ("toy", "other")}
    found = Plugins(modalities={name: ModalityPlugin(spec, "d", "1") for name, spec in specs.items()})
    monkeypatch.setattr(runconfig, "discover", lambda: found)
    monkeypatch.setattr(runconfig, "modality_config", lambda name: found.get(name) and TOY)
    yield presets


def refused(*overrides: str, **arguments: object) -> str:
    with pytest.raises(NextscaleError) as caught:
        load_config(**{"modality": "toy", "overrides": overrides, **arguments})  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_precedence_is_preset_then_file_then_override(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("seed: 6\ntransformer:\n  width: 64\n")
    assert load_config("toy").seed == 5
    config = load_config("toy", file=file)
    assert (config.seed, config.transformer.depth, config.transformer.width) == (6, 2, 64)
    config = load_config("toy", file=file, overrides=["seed=7", "transformer.depth=3", "seed=8"])
    assert (config.seed, config.transformer.depth, config.transformer.width) == (8, 3, 64)


def test_preset_default_named_and_none() -> None:
    assert load_config("toy").preset == "small"
    assert load_config("toy", preset="large").transformer.depth == 30
    bare = load_config("toy", preset="none")
    assert bare.seed == 0 and bare.transformer.depth == 16 and bare.preset == "none"
    assert load_config("toy", overrides=["preset=large"]).preset == "large"


def test_a_file_may_name_modality_and_preset(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("modality: other\npreset: large\nseed: 1\n")
    config = load_config(file=file, default_modality="toy")
    assert (config.modality, config.preset, config.transformer.depth) == ("other", "large", 30)
    assert load_config(file=file, preset="small").transformer.depth == 2, "the caller's preset wins"
    with pytest.raises(ConfigError, match=r"c\.yaml is for modality 'other', not 'toy'"):
        load_config("toy", file=file)
    assert load_config(default_modality="toy").modality == "toy"
    with pytest.raises(ConfigError, match=r"no modality is named \(known: other, toy\)"):
        load_config()


def test_shorthand_in_overrides_and_files(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: here\n")
    assert load_config("toy", file=file).data.source == "here"
    config = load_config("toy", file=file, overrides=["data.size=8", "data=there"])
    assert (config.data.source, config.data.size) == ("there", 8)
    assert load_config("toy", overrides=["data=2024"]).data.source == "2024", "a name of digits stays text"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example(text="my #1 pics")
@example(text="  'quoted': yes # no")
@example(text="{source: x}")
@example(text="null")
def test_text_is_taken_as_typed(text: str) -> None:
    assert load_config("toy", overrides=[f"data={text}"]).data.source == text
    assert load_config("toy", overrides=[f"data.source={text}"]).data.source == text
    config = load_config("toy", overrides=[f"training.init={text}"])
    assert config.training.init == (None if text in ("null", "None") else text)


def test_lists_of_text_and_words_are_taken_as_typed() -> None:
    def names(text: str) -> tuple[str, ...]:
        return load_config("toy", overrides=[f"tokenizer.names={text}"]).tokenizer.names

    assert names("no, 010,null") == ("no", "010", "null") == names("[no, 010, 'null']")
    assert load_config("toy", overrides=["data.choice=no"]).data.choice == "no"
    assert load_config("toy", overrides=["data.choice=3"]).data.choice == 3
    assert "data= sets nothing: give a text after the =" in refused("data=")


def test_numbers_mean_what_they_seem_to() -> None:
    assert load_config("toy", overrides=["seed=010"]).seed == 10, "no octal number"
    assert load_config("toy", overrides=["seed=0x10"]).seed == 16
    assert load_config("toy", overrides=["seed=1_000"]).seed == 1000
    assert "seed = '1:30' is wrong: should be a valid integer" in refused("seed=1:30")
    assert load_config("toy", overrides=["preset=null"]).preset == "none"


@pytest.mark.parametrize("text", ["[1,2,3]", "1,2,3", "[1, 2, 3]", "1, 2, 3"])
def test_sequences_in_overrides(text: str) -> None:
    assert load_config("toy", overrides=[f"tokenizer.scales={text}"]).tokenizer.scales == (1, 2, 3)


def test_values_are_parsed_as_yaml_for_their_field() -> None:
    def value(text: str, name: str) -> object:
        section, field = name.split(".")
        return getattr(getattr(load_config("toy", overrides=[f"{name}={text}"]), section), field)

    assert value("7", "tokenizer.scales") == (7,)
    assert value("a,b", "tokenizer.names") == ("a", "b")
    assert value("4,6", "data.size") == (4, 6)
    assert value("None", "data.size") is None and value("null", "data.size") is None
    assert value("1e-3", "transformer.drop_path") == 0.001
    assert value("a=b,c", "data.source") == "a=b,c"
    assert value("{codes: 3}", "tokenizer.part") == PartConfig(codes=3)
    assert value(".5,1", "sampling.temperature") == (0.5, 1.0)


def test_setting_one_key_keeps_the_defaults_of_its_neighbours() -> None:
    assert load_config("toy", overrides=["tokenizer.part.decay=0.25"]).tokenizer.part.codes == 128


def test_empty_files_and_sections_set_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text in ("", "# nothing\n", "training:\ndata:\n"):
        file.write_text(text)
        assert load_config("toy", file=file) == load_config("toy")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training.tokenzier.lr=1",
            "unknown key training.tokenzier.lr; did you mean 'tokenizer'? (known: device, init, minutes, "
            "scorer, shard, tensorboard, threads, tokenizer, tokenizer_share, transformer, workers)",
        ),
        ("tokenizer.part.cods=1", "unknown key tokenizer.part.cods; did you mean 'codes'? (known: codes, decay)"),
        ("codes=1", "unknown key codes; did you mean tokenizer.part.codes?"),
        ("seed=x", "seed = 'x' is wrong: should be a valid integer (override seed=x)"),
        ("seed=-1", "seed = -1 is wrong: should be greater than or equal to 0 (override seed=-1)"),
        ("training.tokenizer.lr=0", "training.tokenizer.lr = 0 is wrong: should be greater than 0 (override"),
        ("transformer.mlp=gleu", "transformer.mlp = 'gleu' is wrong: should be 'gelu' or 'swiglu' (override"),
        ("data.size=big", "data.size = 'big' is wrong: should be a valid integer or a valid tuple (override"),
        ("sampling.top_k=1,-1", "sampling.top_k[1] = -1 is wrong: should be greater than or equal to 0 (override"),
        ("tokenizer.scales=1,x", "tokenizer.scales[1] = 'x' is wrong: should be a valid integer"),
        (
            "training=3",
            "training is a section and cannot be 3 (its keys: tokenizer, transformer, scorer, init, device, threads, "
            "workers, minutes, tokenizer_share, shard, tensorboard)",
        ),
        ("seed.x=3", "seed is a single value and has no keys"),
        ("seed", "'seed' is not an override: it should read key=value"),
        ("=1", "its key '' is empty"),
        ("seed" + ".a" * 99 + "=1", "its key has more than 32 parts"),
        ("seed=&x [*x]", "override seed=&x [*x] is not valid YAML: line 1: *x contains itself"),
        ("tokenizer=" + "{a: " * 500, "line 1: nested more than 32 levels deep"),
        ("tokenizer.scales=" + "1," * 30_000, "line 1: more than 20,000 values"),
        ("training..lr=1", "its key 'training..lr' is empty or has an empty part"),
        ("tokenizer.scales=[1,", "override tokenizer.scales=[1, is not valid YAML: line 1: expected"),
        ("preset=smal", "unknown preset 'smal'; did you mean 'small'? (known: large, nested, none, small, wrong)"),
        ("preset=wrong", "preset wrong: unknown key transformer.deph; did you mean 'depth'?"),
        ("preset=nested", "preset nested: a preset must not name another preset or modality"),
    ],
)
def test_errors_say_what_where_and_what_would_be_right(override: str, message: str) -> None:
    assert message in refused(override)


def test_unknown_modality_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"^unknown modality 'tyo'; did you mean 'toy'\?"):
        load_config("tyo")
    (tmp_path / "c.yaml").write_text("modality: tyo\n")
    with pytest.raises(PluginError, match=r"c\.yaml: unknown modality 'tyo'"):
        load_config(file=tmp_path / "c.yaml")


def test_the_first_error_is_reported_and_the_rest_counted() -> None:
    assert refused("seed=x", "transformer.depth=-1").endswith("(override seed=x) (and 1 more)")
    assert refused("sed=1", "transformr.depth=0", "x=1").endswith(" (and 2 more)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  tokenzier: {lr: 1}\n", "c.yaml: unknown key training.tokenzier.lr; did you mean 'tokenizer'?"),
        ("seed: x\n", "seed = 'x' is wrong: should be a valid integer (from "),
        ("a: [1\nb: 2\n", "c.yaml is not valid YAML: line 2: "),
        ("seed: 1\nseed: 2\n", "c.yaml is not valid YAML: line 2: key 'seed' twice"),
        ("- 1\n", "c.yaml should hold 'key: value' lines, not [1]"),
        ("on: 1\n", "unknown key on (known"),
        ("modality: [1]\n", "c.yaml is for modality [1], not 'toy'"),
        ("preset: [a]\n", "preset = ['a'] is wrong: should be the name of a preset (from "),
        ("seed: 2023-02-31\n", "seed = '2023-02-31' is wrong: should be a valid integer"),
        ("seed: !!float z\n", "c.yaml is not valid YAML: line 1: 'z' is not of type 'float'"),
        ("seed: !!set {z}\n", "line 1: unknown type 'set'"),
        ("\n? {a: b}\n: c\n", "line 2: a key is a word, not a list or a mapping"),
        ("seed: {<<: {? [a] : b}}\n", "line 1: a key is a word"),
        ("data: &x\n  source: [*x]\n", "line 2: *x contains itself"),
        ("seed: " + "[" * 400 + "\n", "line 1: nested more than 32 levels deep"),
        ("seed: " + "8" * 4999 + "\n", "line 1: a number of more than 1000 digits"),
        ("sed: 0x" + "f" * 900 + "\n", "unknown key sed"),
        ("a: &a [" + "x," * 150 + "]\nb: [" + "*a," * 150 + "]\n", "line 2: more than 20,000 values"),
        ("#" * 300_000, "is too large: at most 262,144 bytes are read"),
    ],
)
def test_files_are_named_in_errors(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert message in refused(file=file)


def test_aliases_that_end_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training: {tokenizer: &s {steps: 3}, transformer: {<<: *s, lr: 1}}\n")
    training = load_config("toy", file=tmp_path / "c.yaml").training
    assert (training.tokenizer.steps, training.transformer.steps, training.transformer.lr) == (3, 3, 1.0)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a named pipe, not a file" in refused(file=tmp_path / "pipe")
    assert "File name too long" in refused(file="x" * 5000)
    assert "embedded null byte" in refused(file="a\0b")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no.yaml does not exist" in refused(file=tmp_path / "no.yaml")
    assert "Is a directory" in refused(file=tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "it is not UTF-8 text" in refused(file=tmp_path / "b.yaml")


def test_a_runs_own_configuration_does_not_need_its_preset(tmp_path: Path, toy: Path) -> None:
    config = load_config("toy", preset="large", overrides=["seed=3"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (toy / "large.yaml").unlink()
    assert load_run_config(tmp_path) == load_run_config(tmp_path / "config.yaml") == config
    assert load_run_config(tmp_path, ["seed=9"]).seed == 9
    with pytest.raises(ConfigError, match="does not exist"):
        load_run_config(tmp_path / "gone")


def test_parse_section_returns_only_what_was_set() -> None:
    assert parse_section(SamplingConfig, ["top_k=3,2", "guidance=0"]) == {"top_k": (3, 2), "guidance": 0.0}
    with pytest.raises(ConfigError, match="unknown key guidnce; did you mean 'guidance'"):
        parse_section(SamplingConfig, ["guidnce=1"])


def test_dump_comments_describe_every_field() -> None:
    text = dump_config(load_config("toy"), comments=True)
    assert re.search(r"^  # Where the data come from\.\n  source: built-in$", text, re.M)
    assert "# How data are cut.\ntokenizer:" in text
    assert re.search(r"# One of: gelu, swiglu\.\n  mlp: gelu", text)
    assert "scales: [1, 3]" in text


def test_the_model_is_the_same_class_each_time() -> None:
    assert run_config_model("toy") is run_config_model("other")


def test_tree_merges_sections_and_replaces_values() -> None:
    tree = Tree(StepsConfig)
    tree.merge({"scales": [1, 2, 3], "part": {"codes": 1}}, "one")
    tree.merge({"scales": [9], "part": {"decay": 0.1}}, "two")
    merged = tree.validate()
    assert merged.scales == (9,) and merged.part == PartConfig(codes=1, decay=0.1)
    assert tree.sources[("part", "codes")] == "one" and tree.sources[("scales",)] == "two"


finite = st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False)
configurations = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "data": st.fixed_dictionaries(
            {"source": st.text(st.characters(exclude_categories=["Cs"]))},
            optional={"size": st.none() | st.integers() | st.tuples(st.integers(), st.integers())},
        ),
        "tokenizer": st.fixed_dictionaries(
            {"names": st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3)},
            optional={"scales": st.lists(st.integers(), max_size=4)},
        ),
        "transformer": st.fixed_dictionaries(
            {"mlp_ratio": finite},
            optional={
                "width": st.none() | st.integers(1, 9999),
                "attention": st.sampled_from(["full", "markov"]) | st.just([[True, False], [True, True]]),
            },
        ),
        "sampling": st.fixed_dictionaries({"temperature": finite | st.lists(finite, min_size=1, max_size=3)}),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=configurations, preset=st.sampled_from([None, "none", "large"]), comments=st.booleans())
@example(values={"data": {"source": "a\x85 \u2028"}}, preset=None, comments=False)
def test_a_dump_reads_back_to_an_equal_configuration(
    tmp_path: Path, values: dict, preset: str | None, comments: bool
) -> None:
    config = run_config_model("toy").model_validate({**values, "modality": "toy", "preset": preset})
    file = tmp_path / "dump.yaml"
    file.write_text(dump_config(config, comments), encoding="utf-8")
    assert load_config(file=file) == config
    assert load_run_config(file) == config
