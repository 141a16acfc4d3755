"""From files to splits of spectrograms."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly

from nextscale.plugin import (
    Batch,
    ConditionSpec,
    DataError,
    DataSplits,
    FolderSplit,
    as_classes,
    check_file,
    fingerprint,
    read_arrays,
    read_folder,
    reading,
    sample_seeds,
    split_rows,
)
from nextscale_audio.config import AudioDataConfig
from nextscale_audio.spectrogram import HOP, to_mel

Parts = dict[str, tuple[np.ndarray, np.ndarray | None]]
"""Waveforms N L, and labels N where there are any, of each split."""


class AudioSource:
    """A ``SampleSource``: B mels T in [-1, 1]; with seeds, each sound begins a little later."""

    def __init__(self, mels: torch.Tensor, labels: np.ndarray | None, shift: int) -> None:
        self.mels, self.labels, self.shift = mels, labels, shift

    def __len__(self) -> int:
        return len(self.mels)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        mels = self.mels[indices]
        if seeds is not None:
            late = sample_seeds(0xA0D10, seeds) % np.uint64(self.shift + 1)
            padded, size = torch.nn.functional.pad(mels, (self.shift, 0), value=-1.0), mels.shape[2]
            starts = [self.shift - int(frames) for frames in late]
            mels = torch.stack([row[:, at : at + size] for row, at in zip(padded, starts, strict=True)])
        return Batch(mels, {} if self.labels is None else {"label": torch.from_numpy(self.labels[indices])})

    def fingerprint(self) -> str:
        return fingerprint({"mels": self.mels.numpy(), "labels": self.labels})


def open_sounds(config: AudioDataConfig) -> DataSplits:
    """The sounds that ``config.source`` names; every class gives its share to the splits that are held out.

    Raises:
        DataError: nothing is there, it cannot be read, or it is too little.
    """
    length = round(config.seconds * config.rate) // HOP * HOP
    parts, classes = read_source(config, length)
    shares = {"test": config.test, "validation": config.validation}
    waves, labels = parts["train"]
    rows = split_rows(
        labels, len(waves), {name: shares[name] for name in shares if name not in parts}, config.split_seed
    )
    parts |= {name: (waves[own], None if labels is None else labels[own]) for name, own in rows.items()}
    if not min(len(parts[name][0]) for name in ("train", "validation")):
        raise DataError(f"{config.source} holds too few sounds to train and to validate with")
    sources = {
        name: AudioSource(to_mel(torch.from_numpy(waves), config.rate, config.mels), labels, config.shift)
        for name, (waves, labels) in parts.items()
        if len(waves)
    }
    conditions = (ConditionSpec(name="label", size=len(classes), names=classes),) if classes else ()
    description = {"mels": config.mels, "frames": length // HOP, "rate": config.rate, "classes": list(classes)}
    return DataSplits(sources["train"], sources["validation"], sources.get("test"), conditions, description)


def read_source(config: AudioDataConfig, length: int) -> tuple[Parts, tuple[str, ...]]:
    """The splits there are, and the names of the classes."""
    if config.source == "tones":
        return {"train": tones(config.rate, length)}, ("up", "down", "steady")
    path = Path(config.source).expanduser()
    if path.suffix == ".npz":
        arrays = read_arrays(path, lambda name: name in ("x", "y"), config.limits)
        waves, names = arrays.get("x", np.zeros(0)), arrays.get("y") if config.labels else None
        if waves.ndim != 2 or waves.dtype.kind != "f" or (names is not None and len(names) != len(waves)):
            raise DataError(f"{path} should hold x, N sounds as floats from -1 to 1, and may hold y, N labels")
        found = {"train": ([fit(wave, length) for wave in waves.astype(np.float32)], names)}
    else:
        folders = read_folder(path, lambda each: each.suffix.lower() == ".wav" and each.is_file(), "sounds (.wav)")
        found = {
            split: ([read_wave(file, config.rate, length) for file in part.paths], class_names(part, config))
            for split, part in folders.items()
        }
    named = [names for _, names in found.values() if names is not None]
    if not named:
        return {split: (np.stack(waves), None) for split, (waves, _) in found.items()}, ()
    labels, classes = as_classes(np.concatenate(named), f"labels of {path}", limits=config.limits)
    ends = np.cumsum([len(names) for names in named])[:-1]
    parts = zip(found, found.values(), np.split(labels, ends), strict=True)
    return {split: (np.stack(waves), own) for split, (waves, _), own in parts}, classes


def class_names(part: FolderSplit, config: AudioDataConfig) -> np.ndarray | None:
    """The class of each file: its folder's, or what ``data.pattern`` finds in its name."""
    if not config.labels or (config.pattern is None and part.labels is None):
        return None
    if config.pattern is None:
        return np.array(part.classes)[part.labels]
    with reading(config.pattern, "data.pattern"):
        matches = [re.fullmatch(config.pattern, path.name) for path in part.paths]
        wrong = [path for path, match in zip(part.paths, matches, strict=True) if match is None or not match.groups()]
    if wrong:
        raise DataError(f"data.pattern={config.pattern} names no class for {wrong[0]}: its first group is the class")
    return np.array([match[1] for match in matches if match])


def read_wave(path: Path, rate: int, length: int) -> np.ndarray:
    """One sound: the mean of its channels, at ``rate``, its loudest sample at 0.9."""
    with reading(check_file(path), "sound"):
        own_rate, samples = wavfile.read(path)
        full = {"i": 2.0 ** (8 * samples.itemsize - 1), "u": 128.0, "f": 1.0}[samples.dtype.kind]
        wave = samples.astype(np.float32) / full - (samples.dtype.kind == "u")
        wave = resample_poly(wave if wave.ndim == 1 else wave.mean(1), rate, own_rate).astype(np.float32)
    if not wave.size or not np.isfinite(wave).all():
        raise DataError(f"{path} holds no sound")
    return fit(wave, length)


def fit(wave: np.ndarray, length: int) -> np.ndarray:
    wave = np.pad(wave[:length], (0, max(0, length - len(wave))))
    return wave * np.float32(0.9 / max(1e-4, np.abs(wave).max()))


def tones(rate: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """240 tones that rise, fall, or stay: built in, to try things with."""
    draw, labels, time = np.random.default_rng(0), np.arange(240) % 3, np.arange(length) / rate
    pitch = draw.uniform(500, 1200, (240, 1)) + np.array([300.0, -300.0, 0.0])[labels][:, None] * time
    loud = np.exp(-draw.uniform(2, 6, (240, 1)) * time)
    return (0.9 * loud * np.sin(2 * np.pi * np.cumsum(pitch, 1) / rate)).astype(np.float32), labels
