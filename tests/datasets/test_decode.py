"""A decoded photograph: right grey values, nothing lost under transparency, the right way up."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from bench import datasets
from bench.cli.main import main
from bench.datasets import manage
from bench.datasets.imagefolder import IMAGEFOLDER
from bench.datasets.photographs import decode, listing, shards
from bench.datasets.photographs.prepare import Settings, prepare
from bench.errors import InputError
from bench.experiments import catalog

OWN = {"kind": "imagefolder", "name": "own"}
CASES = 1000
GREY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(image: Image.Image, kind: str = "PNG", **keywords) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **keywords)
    return out.getvalue()


def png(pixels: np.ndarray, colour_type: int, depth: int, extra: bytes = b"") -> bytes:
    """Return a PNG that Pillow reads but does not write; ``pixels`` is big-endian (H, W, ...)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    transparent = chunk(b"tRNS", extra) if extra else b""
    parts = chunk(b"IHDR", header) + transparent + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


# --- 16 bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_mean(kind):
    wide = GREY.astype(np.uint16) * 256 + np.random.default_rng(2).integers(
        0, 256, GREY.shape, dtype=np.uint16
    )
    found = decode.pixels(encoded(Image.fromarray(wide), kind))
    assert np.array_equal(found, repeated(GREY))
    assert decode.pixels(encoded(Image.fromarray(np.full((4, 4), 127 * 257, np.uint16)), kind)).mean() == 127
    white = decode.pixels(encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)), kind))
    assert white.min() == 255


def test_16_bit_colour_and_alpha_take_the_high_byte_as_well():
    wide = (COLOUR.astype(np.uint16) * 256 + 77).astype(">u2")
    assert np.array_equal(decode.pixels(png(wide, 2, 16)), COLOUR)
    alpha = np.full((*GREY.shape, 1), 65535)
    assert np.array_equal(decode.pixels(png(np.concatenate([wide, alpha], 2).astype(">u2"), 6, 16)), COLOUR)
    pair = np.stack([GREY.astype(np.int64) * 257, alpha[..., 0]], 2).astype(">u2")
    assert np.array_equal(decode.pixels(png(pair, 4, 16)), repeated(GREY))


def test_a_transparent_value_of_16_bit_grey_becomes_the_background():
    wide = GREY.astype(">u2") * 257
    value = int(wide[3, 4])
    expected = repeated(GREY)
    expected[wide == value] = decode.BACKGROUND
    assert np.array_equal(decode.pixels(png(wide, 0, 16, struct.pack(">H", value))), expected)
    with pytest.raises(decode.BadImage, match="16-bit colours with a transparent colour"):
        decode.pixels(png(COLOUR.astype(">u2") * 257, 2, 16, struct.pack(">HHH", 1, 2, 3)))


def test_a_tiff_whose_zero_is_white_is_inverted():
    data = encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF", tiffinfo={262: 0})
    assert decode.opened(data).tag_v2[262] == 0
    assert np.array_equal(decode.pixels(data), 255 - repeated(GREY))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [(GREY.astype(np.float32), "floating-point pixels"), (GREY.astype(np.int32), "32-bit integer pixels")],
)
def test_pixels_without_a_known_white_are_refused_by_name(pixels, words):
    with pytest.raises(decode.BadImage, match=words):
        decode.pixels(encoded(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_signed_integers_are_refused(kind):
    """Read as unsigned, -5 would be 251, lighter than 100."""
    data = encoded(Image.fromarray(GREY.astype(kind)), "TIFF", tiffinfo={339: 2})
    with pytest.raises(decode.BadImage, match="signed or 32-bit integer pixels"):
        decode.pixels(data)


# --- transparency -------------------------------------------------------------------------------------------


def over_background(rgba: np.ndarray) -> np.ndarray:
    """Return RGBA (H, W, 4) composed on the background, float64."""
    alpha = rgba[..., 3:].astype(float) / 255
    return rgba[..., :3] * alpha + np.array(decode.BACKGROUND) * (1 - alpha)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_composed_on_the_background(kind):
    alpha = np.random.default_rng(3).integers(0, 256, (20, 30, 1), dtype=np.uint8)
    rgba = np.concatenate([COLOUR, alpha], axis=2)
    keywords = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = decode.pixels(encoded(Image.fromarray(rgba), kind, **keywords))
    assert np.abs(found - over_background(rgba)).max() <= 1.0


@pytest.mark.parametrize("ink", [0, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_a_drawing_on_a_transparent_ground_stays_visible(ink, mode):
    rgba = np.zeros((16, 16, 4), dtype=np.uint8)  # transparent black everywhere
    rgba[4:12, 6:9] = ink, ink, ink, 255
    drawing = Image.fromarray(rgba)
    data = encoded(
        drawing.convert("LA") if mode == "LA" else drawing.quantize() if mode != "RGBA" else drawing
    )
    expected = np.full((16, 16, 3), 128)
    expected[4:12, 6:9] = ink
    assert np.array_equal(decode.pixels(data), expected)


def test_a_palette_with_a_transparent_entry_and_grey_with_a_transparent_value():
    palette = Image.fromarray(COLOUR).quantize(8)
    gone = np.asarray(palette) == 3
    expected = np.asarray(palette.convert("RGB")).copy()
    expected[gone] = decode.BACKGROUND
    assert np.array_equal(decode.pixels(encoded(palette, transparency=3)), expected)
    expected = repeated(GREY)
    expected[GREY[0, 0] == GREY] = decode.BACKGROUND
    assert np.array_equal(
        decode.pixels(encoded(Image.fromarray(GREY), transparency=int(GREY[0, 0]))), expected
    )


# --- other kinds --------------------------------------------------------------------------------------------


def test_one_bit_palette_and_grey_are_what_they_show():
    bits = Image.fromarray(GREY).convert("1")
    for kind in ("PNG", "TIFF", "BMP"):
        found = decode.pixels(encoded(bits, kind))
        assert set(np.unique(found)) == {0, 255} and np.array_equal(
            found, repeated(np.asarray(bits) * np.uint8(255))
        )
    palette = Image.fromarray(COLOUR).quantize(16)
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(decode.pixels(encoded(palette, kind)), np.asarray(palette.convert("RGB")))
    assert np.array_equal(decode.pixels(encoded(Image.fromarray(GREY), "PPM")), repeated(GREY))


def test_cmyk_is_converted_in_jpeg_and_tiff():
    plain = Image.fromarray(np.full((8, 8, 3), (200, 100, 50), np.uint8))
    for kind in ("JPEG", "TIFF"):
        found = decode.pixels(encoded(plain.convert("CMYK"), kind))
        assert np.abs(found.astype(int) - (200, 100, 50)).max() < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_the_camera_noted(kind, orientation):
    note = Image.Exif()
    note[0x0112] = orientation
    picture = np.zeros((24, 16, 3), dtype=np.uint8)
    picture[:8, :8] = 255  # the top left corner is white
    keywords = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(picture), kind, exif=note, **keywords)
    turned = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: picture.transpose(1, 0, 2)[:, ::-1],
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: picture.transpose(1, 0, 2)[::-1],
    }[orientation]
    found = decode.pixels(data)
    assert found.shape == turned.shape and decode.size(data) == (turned.shape[1], turned.shape[0])
    assert np.abs(found.astype(int) - turned).max() < 3


def test_the_digest_tells_apart_what_an_older_version_decoded_otherwise():
    plain = encoded(Image.fromarray(COLOUR))
    assert decode.treatment(plain) == "" and decode.treatment(b"no image") == ""
    assert decode.treatment(encoded(Image.fromarray(GREY.astype(np.uint16)))) == "16-bit grey: high byte"
    assert "128, 128, 128" in decode.treatment(encoded(Image.fromarray(COLOUR).convert("RGBA")))
    note = Image.Exif()
    note[0x0112] = 6
    assert decode.treatment(encoded(Image.fromarray(COLOUR), "JPEG", exif=note)) == "orientation 6"


# --- folders ------------------------------------------------------------------------------------------------


def folder_of_everything(root):
    """Write classes with every suffix that ImageFolder reads, also in subfolders, and other files."""
    for part in ("train", "val"):
        for label, name in enumerate(("ant", "bee")):
            deep = root / part / name / "more" / "yet"
            deep.mkdir(parents=True)
            for i, suffix in enumerate(IMG_EXTENSIONS):
                kind = {".pgm": "PPM", ".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
                image = Image.fromarray(np.roll(GREY, 7 * i + label))
                image = image if suffix == ".pgm" else image.convert("RGB")
                data = encoded(image, "PPM" if suffix == ".ppm" else kind)
                (deep.parents[i % 3 - 1] if i % 3 else deep).joinpath(f"{i}{suffix.upper()}").write_bytes(
                    data
                )
    ant = root / "train" / "ant"
    (ant / "notes.txt").write_text("x")
    (ant / "film.gif").write_bytes(encoded(Image.fromarray(GREY), "GIF"))
    (ant / "._0.jpg").write_bytes(b"x")
    (ant / "gone.png").symlink_to(ant / "nowhere.png")
    (ant / "more" / "round").symlink_to(ant)
    (root / "train" / "loose.jpg").write_bytes(b"x")
    (root / "train" / ".hidden").mkdir()
    (root / "extra").mkdir()
    return root


def test_what_imagefolder_reads_is_read_in_its_order(tmp_path):
    assert set(IMG_EXTENSIONS) == set(decode.SUFFIXES)
    root = folder_of_everything(tmp_path / "own")
    found = listing.of_tree(root)
    (root / "train" / "ant" / "more" / "round").unlink()  # ImageFolder would follow it again and again
    (root / "train" / "ant" / "._0.jpg").unlink()
    (root / "train" / "ant" / "gone.png").unlink()
    (root / "train" / ".hidden").rmdir()
    for part, folder in (("train", "train"), ("test", "val")):
        expected = ImageFolder(str(root / folder)).samples
        assert [(str(item.path), item.label) for item in found.parts[part]] == expected
        assert len(expected) == 2 * len(IMG_EXTENSIONS)


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    root = folder_of_everything(tmp_path / "own")
    left = {each.name: each.reason for each in listing.of_tree(root).left_out}
    assert left == {
        "extra/": "beside train/ and val/",
        "train/.hidden/": listing.HIDDEN,
        "train/loose.jpg": listing.NO_CLASS,
        "train/ant/._0.jpg": listing.HIDDEN,
        "train/ant/notes.txt": listing.OTHER_SUFFIX,
        "train/ant/film.gif": listing.OTHER_SUFFIX,
        "train/ant/gone.png": listing.DANGLING,
        "train/ant/more/round/": listing.CYCLE,
    }
    for command in (["data", "list"], ["data", "verify", "imagefolder:own"]):
        assert main([*command, "--data", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "train/ant/gone.png" in out and "2 left out (none of the suffixes" in out
    manifest = prepare(
        "own",
        lambda: IMAGEFOLDER.listing(OWN, tmp_path),
        IMAGEFOLDER.shards_folder(OWN, tmp_path),
        Settings(),
        lambda text: "train/ant/film.gif" in text,
        lambda _: None,
    )
    assert "train/ant/gone.png" in manifest.remarks[0]
    assert "train/ant/gone.png" in manage.list_text(tmp_path)


def test_the_first_frame_of_several_is_read_and_the_image_named(tmp_path):
    root = folder_of_everything(tmp_path / "own")
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    for name, kind in (("film.png", "PNG"), ("pages.tiff", "TIFF"), ("film.webp", "WEBP")):
        keywords = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(first, kind, save_all=True, append_images=[second], **keywords)
        assert decode.frames(data) == 2 and np.array_equal(decode.pixels(data), COLOUR)
        (root / "train" / "bee" / name).write_bytes(data)
    text = manage.verify("imagefolder:own", tmp_path)
    assert "3 with several frames or pages" in text and "train/bee/pages.tiff" in text


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG"])
def test_truncated_images_of_every_format_are_named(tmp_path, kind):
    root = folder_of_everything(tmp_path / "own")
    data = encoded(
        Image.fromarray(np.random.default_rng(5).integers(0, 256, (90, 90, 3), dtype=np.uint8)), kind
    )
    (root / "train" / "ant" / "cut.png").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match=r"1 corrupt image: train/ant/cut.png: "):
        datasets.load(OWN, tmp_path)


def test_pixels_and_sums_of_turned_and_transparent_images_agree_in_a_folder_and_in_shards(tmp_path):
    root = folder_of_everything(tmp_path / "own")
    note = Image.Exif()
    note[0x0112] = 6
    (root / "train" / "ant" / "turned.jpg").write_bytes(encoded(Image.fromarray(COLOUR), "JPEG", exif=note))
    (root / "train" / "bee" / "wide.png").write_bytes(encoded(Image.fromarray(GREY.astype(np.uint16) * 257)))
    before, identity = datasets.load(OWN, tmp_path), catalog.checksum(OWN, tmp_path)
    manifest = prepare(
        "own",
        lambda: IMAGEFOLDER.listing(OWN, tmp_path),
        IMAGEFOLDER.shards_folder(OWN, tmp_path),
        Settings(),
        lambda _: True,
        lambda _: None,
    )
    assert catalog.checksum(OWN, tmp_path) == identity and shards.problems(manifest) == []
    after = shards.load(manifest, 0)
    for number, record in enumerate(before.train.index):
        assert np.array_equal(before.train.read(number), after.train.read(number))
        for field in ("height", "width", "label", "sums"):
            assert np.array_equal(record[field], after.train.index[number][field])


def test_list_says_why_a_folder_is_no_data_set(tmp_path):
    for name in ("half/train/ant", "half/train/bee", "flat/ant"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "odd" / "train" / "one").mkdir(parents=True)
    (tmp_path / "odd" / "val" / "one").mkdir(parents=True)
    text = manage.list_text(tmp_path)
    assert "imagefolder:half" in text and "val/CLASS/ (or test/CLASS/) is not there" in text
    assert "odd/train: 1 folders of classes; at least 2 are needed" in text
    assert "flat: expected the folders train/CLASS/ and val/CLASS/" in text


def test_an_unreadable_folder_of_a_class_is_an_error(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads every folder")
    root = folder_of_everything(tmp_path / "own")
    (root / "train" / "bee").chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        listing.of_tree(root)


def test_a_run_says_what_its_data_leaves_out(tmp_path, capsys):
    folder_of_everything(tmp_path / "data" / "own")
    (tmp_path / "own.toml").write_text(
        "[defaults]\ndataset = 'imagefolder:own'\nnetwork = 'resnet20'\nwidth = 0.125\n"
        "epochs = 1\nbatch_size = 4\n[[arms]]\nname = 'A'\nquantizer = 'full_precision'\n"
    )
    command = [
        "run",
        str(tmp_path / "own.toml"),
        "--data",
        str(tmp_path / "data"),
        "--no-ray",
        "--device",
        "cpu",
    ]
    assert main([*command, "--results", str(tmp_path / "runs"), "--max-minutes", "0.0001"]) in (0, 3)
    text = "".join(capsys.readouterr())
    assert text.count("1 left out (a link that leads nowhere): train/ant/gone.png") == 1


def test_damaged_bytes_of_every_kind_are_refused_or_keep_their_size():
    generator = np.random.default_rng(6)
    note = Image.Exif()
    note[0x0112] = 6
    rgba = Image.fromarray(np.concatenate([COLOUR, GREY[..., None]], axis=2))
    good = [
        encoded(Image.fromarray(GREY.astype(np.uint16) * 257)),
        encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
        encoded(rgba),
        encoded(rgba, "TIFF"),
        encoded(rgba, "WEBP", lossless=True),
        encoded(Image.fromarray(COLOUR).quantize(8), transparency=3),
        encoded(Image.fromarray(COLOUR), "JPEG", exif=note),
        encoded(Image.fromarray(COLOUR), "PPM"),
        encoded(Image.fromarray(GREY).convert("1"), "BMP"),
        encoded(Image.fromarray(COLOUR), save_all=True, append_images=[Image.fromarray(COLOUR)]),
    ]
    outcomes = {True: 0, False: 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in range(CASES):
            data = bytearray(good[case % len(good)])
            for _ in range(generator.integers(1, 4)):
                data[generator.integers(len(data) // 3 if case % 2 else len(data))] = generator.integers(256)
            assert isinstance(decode.digest(bytes(data)), bytes)
            try:
                size, image = decode.size(bytes(data)), decode.rgb(bytes(data))
                assert image.size == size and image.mode == "RGB" and decode.frames(bytes(data)) >= 1
                outcomes[True] += 1
            except decode.BadImage:
                outcomes[False] += 1
    assert min(outcomes.values()) > CASES // 20, outcomes
