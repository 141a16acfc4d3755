"""The contract, sounds there and back, and one run from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from typer.testing import CliRunner

from nextscale.plugin import DataError, ModalityContract
from nextscale_audio.config import AudioDataConfig, AudioTokenizerConfig
from nextscale_audio.data import open_sounds, tones
from nextscale_audio.modality import AudioModality
from nextscale_audio.spectrogram import to_mel, to_waves
from nextscale_cli.main import app

SMALL = {"channels": 4, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": False, "shortcut": True}


class TestAudio(ModalityContract):
    examples, few_examples = 10, 5

    def build_modality(self) -> AudioModality:
        return AudioModality()

    def data_config(self) -> AudioDataConfig:
        return AudioDataConfig(seconds=0.128, mels=16)

    def tokenizer_config(self) -> AudioTokenizerConfig:
        return AudioTokenizerConfig(**SMALL, scales=(1, 2, 4, 8), quantizer={"codes": 16, "phi_count": 2})


def test_a_spectrogram_sounds_like_what_it_was_made_of() -> None:
    """Waveforms found for a spectrogram have nearly that spectrogram, and its loudest frequency."""
    waves = torch.from_numpy(tones(8000, 8192)[0][2:5])
    mel = to_mel(waves, 8000, 64)
    assert mel.shape == (3, 64, 128) and mel.min() >= -1 and mel.max() <= 1
    back = to_waves(mel, 8000)
    assert back.shape == waves.shape
    assert (to_mel(back, 8000, 64) - mel).abs().mean() < 0.05
    loudest = [torch.fft.rfft(wave).abs().argmax().item() for wave in (waves[0], back[0])]
    assert abs(loudest[0] - loudest[1]) < 0.05 * loudest[0]


def write(folder: Path, name: str, samples: np.ndarray, rate: int = 8000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wavfile.write(folder / name, rate, samples)


def test_classes_come_from_folders_or_from_names(tmp_path: Path) -> None:
    sound = (np.sin(np.arange(4000) / 5) * 20000).astype(np.int16)
    for label in ("no", "yes"):
        for i in range(6):
            write(tmp_path / "folders" / label, f"{i}.wav", sound)
            write(tmp_path / "names", f"{label}_{i}.wav", np.stack([sound, sound], 1), rate=16000)
    for source, pattern in (("folders", None), ("names", "(.*)_.*")):
        data = open_sounds(AudioDataConfig(source=str(tmp_path / source), pattern=pattern, validation=0.2, test=0.2))
        assert data.conditions[0].names == ("no", "yes")
        assert data.train.batch(np.arange(2), None).samples.shape == (2, 64, 128)
    with pytest.raises(DataError, match="names no class for"):
        open_sounds(AudioDataConfig(source=str(tmp_path / "names"), pattern="([0-9]+)"))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"noise" * 100])
def test_a_damaged_sound_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.wav"):
        open_sounds(AudioDataConfig(source=str(tmp_path)))


def test_trains_samples_evaluates_edits_and_predicts(tmp_path: Path) -> None:
    run, sound = str(tmp_path / "run"), str(tmp_path / "a.wav")
    write(tmp_path, "a.wav", (tones(8000, 8192)[0][0] * 20000).astype(np.int16))
    steps = ["training.tokenizer.steps=4", "training.transformer.steps=4", "training.device=cpu"]
    for command in (
        ["train", "-m", "audio", "--out", run, *steps],
        ["sample", run, "-n", "3", "label=up"],
        ["eval", run, "--samples", "6", "--guidance", "1", "eval.classifier_epochs=1"],
        ["edit", run, "--sample", sound, "--box", "40,80", "-n", "2"],
        ["predict", run, "--sample", sound, "--frames", "64", "-n", "2"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "run").rglob("*.wav"))) == 3 + 2 + 2
