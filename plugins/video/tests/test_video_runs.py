"""Runs of tiny models, from settings to predictions: joint and clip pyramids, both kinds of attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner
from video_files import levels, numbers, write

import nextscale
from nextscale.api import Model
from nextscale.config.run import load_config, parse_options
from nextscale.errors import ConfigError, DataError, NextscaleError, NextscaleWarning
from nextscale.grid import SegmentedTokenizer
from nextscale.sampling.continuation import go_on, held, predict
from nextscale.training.run import train
from nextscale_cli.main import app
from nextscale_video import evaluate
from nextscale_video.config import VideoEvaluationConfig
from nextscale_video.evaluate import evaluate_prediction, evaluate_reconstruction, evaluate_samples, known_frames
from nextscale_video.readers import read_file
from nextscale_video.tokenizer import build_tokenizer
from nextscale_video.writers import write_samples

TINY: dict[str, Any] = {
    "preset": "moving-digits",
    "data.frames": 9,
    "tokenizer.scales": "[[1,1,1],[3,4,4]]",
    "tokenizer.time_strides": "[2,2]",
    "tokenizer.width": 8,
    "tokenizer.channels": 4,
    "tokenizer.quantizer.codes": 16,
    "transformer.depth": 1,
    "transformer.width": 32,
    "transformer.heads": 2,
    "training.transformer.cache": False,
    "training.device": "cpu",
} | {
    f"training.{stage}.{key}": value
    for stage in ("tokenizer", "transformer")
    for key, value in {"steps": 2, "batch_size": 2, "validate_every": 2, "validation_samples": 4}.items()
}
CLIPS = {"tokenizer.clips": "[1,2]"}
VARIANTS: dict[str, dict[str, Any]] = {
    "joint-full": {},
    "clips-matrix": CLIPS | {"transformer.attention": "[[1,0,0,0],[1,1,0,0],[1,1,1,0],[1,1,1,1]]"},
}


def settings(**changes: Any) -> list[str]:
    return [f"{key}={value}" for key, value in (TINY | changes).items()]


@pytest.fixture(scope="module", params=list(VARIANTS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / request.param
    train(load_config("video", overrides=settings(**VARIANTS[request.param])), run)
    assert (run / "samples" / "samples.gif").exists()
    return run


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return nextscale.load(run, "cpu")


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    from nextscale_video.moving import open_moving_digits

    config = load_config("video", overrides=settings()).data
    return open_moving_digits(config).validation.batch(np.arange(2), None).samples


def test_samples_and_predictions(model: Model, clips: torch.Tensor):
    drawn = model.generate(2, label=3, return_steps=True)
    assert drawn.samples.shape == clips.shape and len(drawn.steps) in (2, 4)
    ahead = predict(model, clips, 5, label=3).samples
    changed = clips.clone()
    changed[:, :, 5:] = 0
    assert torch.equal(predict(model, changed, 5, label=3).samples, ahead), "later frames do not affect the prediction"


def test_a_long_continuation_is_drawn_in_pieces(model: Model, clips: torch.Tensor):
    """Three pieces, each drawn only from the last frames of the previous one."""
    parts = list(go_on(model, clips, 1, 3, seed=4))
    assert [part.shape[2] for part in parts] == [9, 8, 8]
    longer = go_on(model, clips, 1, 5, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(parts, longer, strict=False))
    again = predict(model, held(torch.cat([parts[0][:, :, -1:]] * 9, 2), 1), 1, seed=0)
    assert again.samples.shape == clips.shape


def test_number_of_known_frames(model: Model, clips: torch.Tensor):
    assert isinstance(model.tokenizer, SegmentedTokenizer) == (known_frames(model.tokenizer) == 1)  # type: ignore[arg-type]
    for places in (0, 9):
        with pytest.raises(NextscaleError, match="give 1 to 8"):
            predict(model, clips, places)


def test_commands(run: Path, clips: torch.Tensor, tmp_path: Path):
    pytest.importorskip("av")
    write_samples(clips[:1, :, :6], tmp_path)
    start = str(tmp_path / "000000.mp4")

    def invoke(*arguments: str, out: str = "out") -> Any:
        return CliRunner().invoke(app, [arguments[0], str(run), *arguments[1:], "--out", str(tmp_path / out)])

    for arguments, message in (
        (("--frames", "5"), "--sample FILE is missing"),
        (("--video", start, "--frames", "9"), "cannot continue from 9 of 9 places: give 1 to 8"),
        (("--video", start, "--frames", "4"), "a start of 4 places ends inside"),
        (("--video", start, "--frames", "5", "label=10"), "label 10 is out of range"),
        (("--video", str(tmp_path / "none.mp4")), "does not exist"),
    ):
        result = invoke("predict", *arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.output
        assert not (tmp_path / "out").exists()
    result = invoke("predict", "--video", start, "--frames", "5", "-n", "2", "label=3")
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.stdout.split()] == ["000000.gif", "000001.gif", "grid.png"]
    result = invoke("predict", "--video", start, "--frames", "1", "-n", "1", "--pieces", "3", out="long")
    assert result.exit_code == 0 and len(list(read_file(tmp_path / "long" / "000000.mp4"))) == 9 + 8 + 8
    result = invoke("edit", "--sample", start, "--box", "1,0,0,5,16,16", "-n", "1", out="edited")
    assert result.exit_code == 0, result.output
    assert len(list(read_file(tmp_path / "edited" / "single" / "000000.mp4"))) == 9


def test_clips_and_masks_are_read_from_frame_folders(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Frames are taken with the training data's stride, and a mask must have the size of the video."""
    folder, tokenizer = tmp_path / "frames", model.tokenizer
    folder.mkdir()
    for t in range(20):
        Image.fromarray(np.full((24, 32), 10 * t, np.uint8)).save(folder / f"{t}.png")
    sample, _ = model.modality.read_sample(folder, tokenizer)
    assert ((sample[0, 0, :, 0, 0] + 1) * 127.5).round().tolist() == [10.0 * t for t in range(9)]
    with monkeypatch.context() as patch:
        patch.setitem(tokenizer.description, "stride", 3)
        apart, marked = model.modality.read_sample(folder, tokenizer, folder)
    assert ((apart[0, 0, :7, 0, 0] + 1) * 127.5).round().tolist() == [30.0 * t for t in range(7)]
    assert torch.equal(apart[:, :, 6:7].expand(-1, -1, 3, -1, -1), apart[:, :, 6:]), "the last frame repeats"
    assert marked is not None and marked[0, :, 0, 0].tolist() == [30 * min(t, 6) > 127 for t in range(9)]
    for frames, height in ((20, 32), (4, 24)):
        np.save(tmp_path / "mask.npy", np.zeros((1, frames, height, 32), np.uint8))
        with pytest.raises(
            DataError, match=f"mask.npy is {min(frames, 9)} x {height} x 32, but the video is 9 x 24 x 32"
        ):
            model.modality.read_sample(folder, tokenizer, tmp_path / "mask.npy")


def test_a_start_is_read_at_the_rate_of_the_training_data(model: Model, tmp_path: Path, monkeypatch: Any):
    pytest.importorskip("av")
    tokenizer, path = model.tokenizer, write(tmp_path / "start.mp4", levels(24, 16, 16), rate=20)

    def read(**description: float) -> list[int]:
        with monkeypatch.context() as patch:
            for key, value in description.items():
                patch.setitem(tokenizer.description, key, value)
            sample, _ = model.modality.read_sample(path, tokenizer)
        return numbers(list(((sample[0].permute(1, 2, 3, 0) + 1) * 127.5).numpy()))

    assert read() == list(range(9)), "data without a rate: frames as they come"
    assert read(resample=10, fps=5, stride=2) == [0, 4, 8, 12, 16, 20, 20, 20, 20], "and the last frame repeats"
    with pytest.warns(NextscaleWarning, match=r"start\.mp4 has 20 frames per second.*training data have 10"):
        assert read(fps=10) == list(range(9))


def test_measures(model: Model, monkeypatch: pytest.MonkeyPatch):
    data = model.modality.open_data(model.config.data)
    monkeypatch.setattr(evaluate, "CLASSIFIER_CLIPS", 32)
    found = evaluate_reconstruction(model.tokenizer, data, limit=3)
    assert 0 < found["psnr"] < 60 and found["reconstruction_clips"] == 3
    ahead = evaluate_prediction(model, data, limit=2)
    assert {"prediction_psnr", "copy_psnr", "prediction_psnr_total", "next_psnr", "copy_next_psnr"} <= ahead.keys()
    assert 0 <= ahead["predicted_better"] <= 1
    clips = data.held_out.batch(np.arange(2), None).samples
    made = predict(model, clips, 5, seed=1).samples
    assert torch.equal(made[:, :, :5], clips[:, :, :5]), "the known frames stay unchanged"
    assert not torch.equal(made, held(clips, 5)), "the other frames are drawn"
    drawn = model.generate(4)
    quality = evaluate_samples(drawn.samples, drawn.conditions, data, VideoEvaluationConfig(classifier_epochs=1))
    assert {"frechet_small_3d", "frechet_small_3d_floor", "motion_histogram_floor", "flicker_real"} <= quality.keys()
    assert 0 <= quality["steady"] <= 1 and 0 <= quality["classifier_accuracy"] <= 1
    alone = evaluate_samples(drawn.samples[:1], drawn.conditions, data, VideoEvaluationConfig(classifier_epochs=1))
    missing = quality.keys() - alone.keys()
    assert alone["compared_clips"] == 1
    assert missing == {f"{key}_small_3d{end}" for key in ("frechet", "precision", "recall") for end in ("", "_floor")}
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        parse_options("video", ["eval.sede=1"])
    with pytest.raises(ConfigError, match=r"eval.extractor = .*does not point to a file"):
        parse_options("video", ["eval.extractor=none.pt"])
    with pytest.raises(DataError, match="they must agree"):
        evaluate_samples(drawn.samples[:, :, :5], {}, data)


def test_a_given_extractor(tmp_path: Path):
    class Pooled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((3, 4)).flatten(1)

    torch.jit.script(Pooled()).save(str(tmp_path / "pooled.pt"))
    features = evaluate._extracted(tmp_path / "pooled.pt", torch.zeros(3, 1, 5, 8, 8), torch.device("cpu"))
    assert features.shape == (3, 15)
    (tmp_path / "bad.pt").write_bytes(b"x")
    with pytest.raises(NextscaleError, match="a TorchScript file is expected"):
        evaluate._extracted(tmp_path / "bad.pt", torch.zeros(3, 1, 5, 8, 8), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data.frames": 8}, DataError, r"clips of 8 frames do not fit the tokenizer, which takes 1 \+ 4 n"),
        ({"data.frames": 9, "tokenizer.first_alone": False}, DataError, "which takes 4 n"),
        ({"data.size": 8}, DataError, "are too small"),
        ({"tokenizer.scales": "[[2,1,1],[1,4,4]]"}, ConfigError, "must not shrink"),
        ({"tokenizer.time_strides": "[2]"}, ConfigError, "has 1 entries, but the 3 resolutions"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], error: type[Exception], message: str):
    config = load_config("video", overrides=settings(**changes))
    size = config.data.size or 16
    description = {"channels": 1, "frames": config.data.frames, "height": size, "width": size}
    with pytest.raises(error, match=message) as caught:
        build_tokenizer(config.tokenizer, description)
    assert "\n" not in str(caught.value)
