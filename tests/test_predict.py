from maskx_d2.predict import find_images


def test_images_of_a_folder_are_found_in_order(tmp_path):
    for name in ("b.jpg", "a.PNG", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    assert [p.name for p in find_images([tmp_path, tmp_path / "c.txt"])] == ["a.PNG", "b.jpg", "c.txt"]
