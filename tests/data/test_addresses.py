from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskx_d2.data.addresses import file_in, file_system, find_images_at, from_anywhere, read_image_at

PNG = (".png",)


@pytest.fixture
def folder(tmp_path):
    """Whose own name and whose images' need quoting, with one image in a folder below."""
    folder = tmp_path / "my images"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(("b c.png", "a%20.PNG", "ä#?.png", "below/d.png")):
        Image.new("RGB", (7, 5), (number, 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.mark.parametrize("end", ["", "/"])
def test_images_in_a_folder_at_an_address_are_found_and_read_whatever_their_names(folder, end):
    address = folder.as_uri() + end
    found = find_images_at(address, recursive=False, suffixes=PNG)
    assert len(found) == 3 and all(name.startswith("file:///") for name in found)
    colours = [np.asarray(read_image_at(each))[0, 0, 0].item() for each in found]
    assert colours == [1, 0, 2]  # sorted by name
    with_below = find_images_at(address, recursive=True, suffixes=PNG)
    assert set(with_below) - set(found) == {file_in(address, "below/d.png")}
    assert find_images_at(found[0], recursive=False, suffixes=PNG) == [found[0]]
    assert read_image_at(str(folder / "b c.png")).size == (7, 5)


def test_what_is_not_there_or_no_image_is_named(folder):
    for name, message in (
        ("x.png", "image file:.*x.png does not exist"),
        ("notes.txt", "notes.txt cannot be"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            read_image_at(file_in(folder.as_uri(), name))
    with pytest.raises(FileNotFoundError, match=r"file:.*nothing is neither an image nor a folder"):
        find_images_at(f"{folder.as_uri()}/nothing", recursive=False, suffixes=PNG)
    with pytest.raises(FileNotFoundError, match=r"holds no image, expected files ending in .jpg"):
        find_images_at(folder.as_uri(), recursive=True, suffixes=(".jpg",))
    with pytest.raises(ValueError, match=r"foo://bucket/ is not an address that pyarrow can read: Unrecog"):
        read_image_at("foo://bucket/a.png")


def test_options_of_an_address_stay_behind_its_path():
    address = file_in("s3://bucket/images/?endpoint_override=localhost:1&scheme=http", "a b.png")
    assert address == "s3://bucket/images/a%20b.png?endpoint_override=localhost:1&scheme=http"
    # Nothing is asked of a network where the address says the region.
    _, inside = file_system("s3://bucket/images/a%20b.png?region=us-east-1")
    assert inside == "bucket/images/a b.png"


def test_paths_are_taken_from_the_current_folder_and_addresses_as_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert from_anywhere("a/b.png") == str(tmp_path / "a" / "b.png")
    assert from_anywhere("s3://bucket/a") == "s3://bucket/a"
    assert file_in("folder", "a b.png") == str(Path("folder") / "a b.png")
