"""``bench data import``: Parquet folders of Hugging Face and torchvision's data sets become one's own."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from bench import datasets
from bench.cli.main import main
from bench.datasets.imports import import_images
from bench.errors import InputError

NAMES = ["zebra", "ape"]  # not in the order of the alphabet: the numbers of the classes stay


def png(value: int, size=(6, 5)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(out, "PNG")
    return out.getvalue()


def parquet(path, values, labels, names=NAMES, image="image", label="label", more=()):
    rows = [{"bytes": png(v) if isinstance(v, int) else v, "path": None} for v in values]
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
    columns = {image: rows, label: labels}
    for other in more:
        features[other] = {"_type": "ClassLabel", "names": names}
        columns[other] = labels
    table = pa.table(columns)
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata if names else {}), path)


@pytest.fixture
def flowers(tmp_path):
    folder = tmp_path / "flowers"
    parquet(folder / "data/train-00000-of-00002.parquet", [10, 20], [0, 1])
    parquet(folder / "data/train-00001-of-00002.parquet", [30, 40], [1, 0])
    parquet(folder / "data/test-00000-of-00001.parquet", [50, 60], [1, 0])
    return folder


def test_a_folder_of_parquet_files(flowers, tmp_path, capsys):
    data = tmp_path / "data"
    assert main(["data", "import", str(flowers), "--data", str(data)]) == 0
    assert "imagefolder:flowers: 4 training and 2 test images" in capsys.readouterr().out
    assert sorted(p.name for p in (data / "flowers/train").iterdir()) == ["0000-zebra", "0001-ape"]
    images = sorted((data / "flowers/train").rglob("*.png"), key=lambda path: path.name)
    assert [path.read_bytes() for path in images] == [png(10), png(20), png(30), png(40)]
    assert [path.parent.name[:4] for path in images] == ["0000", "0001", "0001", "0000"]
    loaded = datasets.load({"kind": "imagefolder", "name": "flowers"}, data)
    assert loaded.num_classes == 2
    assert [p.name for p in data.iterdir()] == ["flowers"]


def test_nothing_is_overwritten(flowers, tmp_path):
    import_images(str(flowers), "mine", tmp_path / "data")
    with pytest.raises(InputError, match="exists already"):
        import_images(str(flowers), "mine", tmp_path / "data")


def test_labels_as_text_and_files_without_metadata(tmp_path):
    for split in ("train", "validation"):
        parquet(tmp_path / f"plain/{split}.parquet", [1, 2], ["a b", "c"], names=None)
    import_images(str(tmp_path / "plain"), None, tmp_path / "data")
    assert sorted(p.name for p in (tmp_path / "data/plain/test").iterdir()) == ["a_b", "c"]


def test_labels_that_would_share_a_folder_are_refused(tmp_path):
    """Two classes would be one; letters of every language are kept."""
    for name, first, second in (("marks", "C++", "C#"), ("case", "Cat", "cat"), ("words", "猫", "狗")):
        for split in ("train", "test"):
            parquet(tmp_path / name / f"{split}.parquet", [1, 2], [first, second], names=None)
    for name in ("marks", "case"):
        with pytest.raises(InputError, match=r"'C.*' and '[cC].*' would share the folder"):
            import_images(str(tmp_path / name), None, tmp_path / "data")
    import_images(str(tmp_path / "words"), None, tmp_path / "data")
    assert sorted(p.name for p in (tmp_path / "data/words/train").iterdir()) == ["狗", "猫"]


def test_a_part_of_a_download_and_two_data_sets_at_once_are_refused(flowers, tmp_path):
    def refused(words):
        with pytest.raises(InputError, match=words):
            import_images(str(flowers), "mine", tmp_path / "data")

    parquet(flowers / "small/train-00000-of-00001.parquet", [10], [0])
    refused(r"images of 2 data sets, data/train\* and small/train\*")
    (flowers / "small/train-00000-of-00001.parquet").unlink()
    parquet(flowers / "data/train_extra.parquet", [10], [0])
    refused(r"images of 2 data sets, data/train\* and data/train_extra\*")
    (flowers / "data/train_extra.parquet").rename(flowers / "data/extra.parquet")
    parquet(flowers / "data/test-00000-of-00001.parquet", [50, 60], [1, 0], names=NAMES[::-1])
    refused("test-00000-of-00001.parquet: other columns, or classes, than .*train-00000")
    (flowers / "data/train-00001-of-00002.parquet").unlink()
    refused("data: 1 files of 2 .train-00000-of-00002.parquet")
    (tmp_path / "data/mine.shards").mkdir(parents=True)
    refused("mine.shards: exists already")


def test_a_jpeg_of_several_frames_is_a_jpeg(tmp_path):
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (value,) * 3) for value in (10, 200)]
    frames[0].save(out, "MPO", save_all=True, append_images=frames[1:])
    for split in ("train", "test"):
        parquet(tmp_path / f"phone/{split}.parquet", [out.getvalue(), 1], [0, 1])
    import_images(str(tmp_path / "phone"), None, tmp_path / "data")
    loaded = datasets.load({"kind": "imagefolder", "name": "phone"}, tmp_path / "data")
    assert abs(int(loaded.train.read(0)[0, 0, 0]) - 10) < 3


def test_what_is_wrong_is_said_and_nothing_is_left(flowers, tmp_path):
    data = tmp_path / "data"

    def refused(source, words, **named):
        with pytest.raises(InputError, match=words):
            import_images(str(source), named.pop("name", None), data, **named)
        assert not data.exists() or list(data.iterdir()) == []

    refused(tmp_path / "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no file of train images")
    for part in ("train", "val"):
        (tmp_path / "pets" / part / "cat").mkdir(parents=True)
    refused(tmp_path / "pets", "a folder of classes needs no import.*imagefolder:pets")
    refused(flowers, "no such column", label="lable")
    refused(flowers, "--as", name="../out")
    parquet(tmp_path / "two/train.parquet", [1], [0], more=["coarse"])
    parquet(tmp_path / "two/test.parquet", [1], [0], more=["coarse"])
    refused(tmp_path / "two", "2 columns of labels.*--label")
    parquet(tmp_path / "text/train.parquet", [b"no image"], [0])
    parquet(tmp_path / "text/test.parquet", [1], [0])
    refused(tmp_path / "text", "train, row 0: is no image")
    parquet(tmp_path / "minus/train.parquet", [1], [-1])
    parquet(tmp_path / "minus/test.parquet", [1], [0])
    refused(tmp_path / "minus", "a label is -1")
    (tmp_path / "damaged").mkdir()
    for split in ("train", "test"):
        (tmp_path / f"damaged/{split}.parquet").write_bytes(b"PAR1 and nothing")
    refused(tmp_path / "damaged", "cannot be read")
    refused("torchvision:FashionMNST", "Did you mean 'FashionMNIST'")


class Fake:
    """A data set of torchvision with two parts."""

    sizes = ((8, 8), (8, 8))
    classes = ("one", "two")

    def __init__(self, root, train=True, transform=None, download=False):
        assert download
        self.train = train

    def __len__(self):
        return 4 if self.train else 2

    def __getitem__(self, n):
        if n >= len(self):
            raise IndexError
        return Image.new("L", self.sizes[n % 2], 10 * n + self.train), n % 2


def test_images_of_one_size_of_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Fake)
    said = import_images("torchvision:FashionMNIST", None, tmp_path)
    assert said.startswith("npz:fashionmnist: 4 training and 2 test images")
    loaded = datasets.load({"kind": "npz", "name": "fashionmnist"}, tmp_path)
    assert loaded.x_train.shape == (4, 8, 8, 1) and loaded.x_train[:, 0, 0, 0].tolist() == [1, 11, 21, 31]
    assert np.array_equal(loaded.y_test, [0, 1])


def test_grey_and_coloured_images_of_one_size_of_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Fake)
    grey = Fake.__getitem__

    def mixed(self, n):
        image, label = grey(self, n)
        return image.convert("RGB") if n == 1 else image, label

    monkeypatch.setattr(Fake, "__getitem__", mixed)
    import_images("torchvision:FashionMNIST", None, tmp_path)
    loaded = datasets.load({"kind": "npz", "name": "fashionmnist"}, tmp_path)
    assert loaded.x_train[:, 0, 0].tolist() == [[value] * 3 for value in (1, 11, 21, 31)]
    monkeypatch.setattr(Fake, "__getitem__", lambda self, n: (*grey(self, n), 0))
    with pytest.raises(InputError, match=r"torchvision:FashionMNIST: an item is .*expected an image"):
        import_images("torchvision:FashionMNIST", "other", tmp_path)


def test_images_of_many_sizes_of_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Fake)
    monkeypatch.setattr(Fake, "sizes", ((8, 8), (9, 7)))
    said = import_images("torchvision:FashionMNIST", "many", tmp_path)
    assert said.startswith("imagefolder:many: 4 training")
    assert sorted(p.name for p in (tmp_path / "many/train").iterdir()) == ["0000-one", "0001-two"]


def test_a_part_that_cannot_be_had(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("Dataset not found")

    monkeypatch.setattr(Fake, "__init__", lambda self, root, train=True, download=False: broken())
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Fake)
    with pytest.raises(InputError, match="the train part cannot be had: Dataset not found"):
        import_images("torchvision:FashionMNIST", None, tmp_path)
