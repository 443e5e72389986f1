import pytest
from PIL import Image

from splitlearn.tasks.image_classification import sources


@pytest.fixture(scope="module")
def digits(config):
    return sources.build(config().data, 0)


@pytest.fixture
def folder(tmp_path):
    """folder("train/a", "train/b", …, count=5): a folder of images of 12×9 pixels, of one grey each."""

    def make(*classes, count=5):
        for i, name in enumerate(classes):
            (tmp_path / name).mkdir(parents=True)
            for j in range(count):
                Image.new("RGB", (12, 9), (20 * i + j,) * 3).save(tmp_path / name / f"{j}.png")
        return tmp_path

    return make
