"""An image of any kind is what a viewer shows."""

import warnings
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from splitlearn.tasks.image_classification.images import ImageLoader, to_rgb

RAMP = np.linspace(0, 255, 12 * 9).round().astype(np.uint8).reshape(9, 12)
COLOURS = Image.fromarray(np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1))
OPAQUE = ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"]


def shown(image: Image.Image) -> np.ndarray:
    """By Pillow's own viewer, which converts to the base mode that a display has."""
    return np.asarray(image.convert(Image.getmodebase(image.mode)).convert("RGB"))


@pytest.fixture
def loaded(tmp_path):
    """loaded(image, "a.png"): what the loader makes of it as a file."""

    def load(image, name, **options):
        image.save(tmp_path / name, **options)
        return ImageLoader(False)(str(tmp_path / name)).permute(1, 2, 0).numpy()

    return load


@pytest.mark.parametrize("mode", OPAQUE)
def test_opaque_modes_are_as_pillows_viewer_shows_them(mode):
    image = COLOURS.convert(mode)
    assert image.mode == mode
    assert np.array_equal(np.asarray(to_rgb(image)), shown(image))


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_transparent_parts_are_white_however_they_are_coloured(mode):
    alpha = Image.fromarray(np.tile(np.array([0, 128, 255], np.uint8), (9, 4)))
    opaque = {"L": COLOURS.convert("L"), "R": COLOURS, "P": COLOURS.quantize()}[mode[0]]
    image = opaque.copy()
    image.putalpha(alpha)
    image = image if image.mode == mode else image.convert(mode)
    found, expected = np.asarray(to_rgb(image)).astype(int), shown(opaque).astype(int)
    assert (found[:, 0::3] == 255).all()
    assert np.abs(found[:, 1::3] - (expected[:, 1::3] + 255) / 2).max() <= 2
    assert np.array_equal(found[:, 2::3], expected[:, 2::3])


@pytest.mark.parametrize("transparency", [3, bytes([255, 255, 255, 0]) + bytes([255] * 252)])
def test_a_palettes_transparent_colour_is_white(transparency, loaded):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 4, "P")
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    found = loaded(image, "a.png", transparency=transparency)
    assert found[0].tolist() == [[0, 0, 0], [200, 0, 0], [0, 200, 0], [255, 255, 255]]


def test_a_colour_that_stands_for_transparent_is_white(loaded):
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((0, 0), (1, 2, 3))
    assert loaded(image, "a.png", transparency=(1, 2, 3))[0].tolist() == [[255] * 3, [9] * 3]


@pytest.mark.skipif(not features.check("littlecms2"), reason="Pillow without LittleCMS")
def test_lab_is_as_its_colours(loaded):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.applyTransform(COLOURS, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    found = loaded(image, "a.tif").astype(int)
    assert np.abs(found - np.asarray(COLOURS).astype(int)).mean() < 4  # rounded to 8 bits


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_sixteen_bits_are_scaled_and_not_flat_white(mode, loaded):
    image = Image.fromarray(RAMP.astype(np.uint16) * 257)
    if mode == "I":
        found = loaded(Image.fromarray(RAMP.astype(np.int32) * 257), "a.pgm")
    else:
        image = (
            image
            if mode == "I;16"
            else Image.frombytes(
                mode, image.size, np.asarray(image).astype(">u2" if mode == "I;16B" else "<u2").tobytes()
            )
        )
        found = np.asarray(to_rgb(image))
        if mode == "I;16":
            assert np.array_equal(loaded(image, "a.png"), found) and np.array_equal(loaded(image, "a.tif"), found)
    assert np.array_equal(found, RAMP[..., None].repeat(3, -1))


@pytest.mark.parametrize(
    "values, expected",
    [
        (RAMP.astype(np.float32) / 255, RAMP),
        (np.array([[0, 1]], np.float32), [[0, 255]]),
        (RAMP.astype(np.float32), RAMP),
        (RAMP.astype(np.int32), RAMP),
        (RAMP.astype(np.float32) * 40 - 700, RAMP),
        (RAMP.astype(np.int32) * 1000 - 7, RAMP),
        (np.array([[np.nan, 100, 255, np.inf]], np.float32), [[0, 100, 255, 0]]),
        (np.full((1, 2), 300, np.int32), [[0, 0]]),
    ],
)
def test_numbers_of_another_range_are_fractions_or_stay_or_are_spread(values, expected, loaded):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loaded(Image.fromarray(values), "a.tif")
    assert np.abs(found.astype(int) - np.array(expected)[..., None]).max() <= 1


@pytest.mark.parametrize("form", ["jpg", "tif", "png", "webp"])
def test_it_is_turned_as_its_exif_data_say(form, loaded):
    dark_left = Image.fromarray(np.repeat([[[0] * 3, [255] * 3]], 20, 0).repeat(10, 1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° to the right, so that left comes on top
    found = loaded(dark_left, f"a.{form}", exif=exif)
    assert found.shape == (20, 20, 3) and found[:9].mean() < 30 and found[11:].mean() > 225


def test_broken_exif_data_do_not_matter(loaded):
    assert loaded(COLOURS, "a.png", exif=b"Exif\0\0nothing that is any").shape == (9, 12, 3)


@pytest.mark.parametrize("form", ["gif", "webp", "png", "tif"])
def test_of_an_animation_it_is_the_first_frame(form, loaded):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    found = loaded(frames[0], f"a.{form}", save_all=True, append_images=frames[1:])
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("form", ["jpg", "png", "gif", "bmp", "webp", "tif"])
@pytest.mark.parametrize("part", [0, 10, 60])
def test_what_is_cut_off_cannot_be_read(form, part, loaded, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    loaded(noise, f"a.{form}")
    path = tmp_path / f"a.{form}"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * part // 100])
    with pytest.raises(OSError):
        ImageLoader(False)(str(path))


def test_bytes_that_are_changed_are_read_or_cannot_be_and_nothing_else(loaded, tmp_path):
    rng = np.random.default_rng(0)
    for form in ("png", "gif", "tif", "webp", "jpg"):
        loaded(COLOURS, f"a.{form}")
        content = (tmp_path / f"a.{form}").read_bytes()
        for _ in range(60):
            changed = bytearray(content)
            for place in rng.integers(0, len(content), 3):
                changed[place] = rng.integers(256)
            (tmp_path / f"a.{form}").write_bytes(changed)
            with suppress(OSError):
                assert ImageLoader(False)(str(tmp_path / f"a.{form}")).shape[0] == 3
