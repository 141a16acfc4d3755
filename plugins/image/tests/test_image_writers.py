"""Writers of samples as pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextscale.errors import NextscaleError
from nextscale.toolkit.pictures import GAP, GROUND, to_uint8
from nextscale_image.writers import write_film, write_grid, write_samples


def samples(count: int, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, height, width, generator=generator) * 2 - 1


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_to_uint8_is_exact_for_every_value_and_clips():
    values = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16)
    assert np.array_equal(to_uint8(values / 127.5 - 1).ravel(), np.arange(256))
    wild = torch.tensor([-7.0, 7.0, float("inf"), -float("inf"), float("nan"), 0.0]).reshape(1, 1, 1, 6)
    assert to_uint8(wild).ravel().tolist() == [0, 255, 255, 0, 128, 128]
    assert to_uint8(samples(2, 3, 4, 5).to(torch.bfloat16)).shape == (2, 4, 5, 3)


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (3, 4, 4)])
def test_to_uint8_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="B C H W"):
        to_uint8(torch.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_write_samples(tmp_path, channels):
    drawn = samples(11, channels, 5, 7)
    paths = write_samples(drawn, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [f"{i:06d}.png" for i in range(11)]
    for path, expected in zip(paths, to_uint8(drawn), strict=True):
        assert np.array_equal(read(path).reshape(5, 7, channels), expected)
    assert sorted(tmp_path.glob("**/*.png")) == paths
    assert not list(tmp_path.glob("**/.*"))


@given(
    st.integers(1, 13), st.sampled_from([1, 3]), st.integers(1, 90), st.integers(1, 90), st.none() | st.integers(1, 5)
)
@settings(max_examples=30, deadline=None)
def test_write_grid(tmp_path_factory, count, channels, height, width, columns):
    drawn = samples(count, channels, height, width)
    path = tmp_path_factory.mktemp("grid") / "grid.png"
    assert write_grid(drawn, path, columns) == path
    picture = read(path).astype(np.uint8)
    columns = columns or int(np.ceil(np.sqrt(count)))
    factor = max(1, -(-64 // min(height, width)))
    cell = (height * factor + GAP, width * factor + GAP)
    assert min(height, width) * factor >= 64
    assert picture.shape[:2] == (-(-count // columns) * cell[0] + GAP, columns * cell[1] + GAP)
    picture = picture.reshape(*picture.shape[:2], channels)
    assert (picture[:GAP] == GROUND).all() and (picture[:, -GAP:] == GROUND).all()
    for i, image in enumerate(to_uint8(drawn)):
        top, left = i // columns * cell[0] + GAP, i % columns * cell[1] + GAP
        shown = picture[top : top + height * factor, left : left + width * factor]
        assert np.array_equal(shown[::factor, ::factor], image)
        assert np.array_equal(shown, image.repeat(factor, 0).repeat(factor, 1))


def test_a_film_has_one_row_per_sample_and_one_column_per_scale(tmp_path):
    steps = [samples(3, 1, 8, 8, seed=k) for k in range(4)]
    picture = read(write_film(steps, tmp_path / "film.png"))
    assert picture.shape == (3 * (64 + GAP) + GAP, 4 * (64 + GAP) + GAP)
    for k, step in enumerate(steps):
        for i, image in enumerate(to_uint8(step)):
            shown = picture[GAP + i * (64 + GAP) :, GAP + k * (64 + GAP) :][:64:8, :64:8]
            assert np.array_equal(shown, image[..., 0])


def test_empty_or_mismatched_films_and_grids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same B H W C"):
        write_film([samples(2), samples(3)], tmp_path / "film.png")
    with pytest.raises(ValueError, match="same B H W C"):
        write_film([], tmp_path / "film.png")
    with pytest.raises(NextscaleError, match="no samples"):
        write_grid(samples(0), tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_grid(samples(1, seed=1), tmp_path / "grid.png")
    before = path.read_bytes()

    def save(self, target, *_, **options):
        target.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(NextscaleError, match=r"the disk is full: .*grid.png"):
        write_grid(samples(1, seed=2), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NextscaleError, match="cannot write"):
        write_samples(samples(1), tmp_path / "file" / "below")
