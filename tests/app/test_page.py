"""``maskx app`` in a real browser."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskx_d2.commands.main import main
from maskx_d2.data.errors import InputError
from maskx_d2.demo import run as demo

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")

MASKS = "img[alt='the image with the masks that were found']"


@pytest.fixture(scope="module")
def browser():
    installed = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with sync_api.sync_playwright() as playwright:
        if installed is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip("there is no Chromium: apt install chromium, or playwright install chromium")
        with playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory):
    """What the page has in place of /tmp."""
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def url(quick_demo, page_folder):
    """Of the page, as the command shows it where a demo was run, with the class-agnostic head beside it."""
    folder = page_folder
    (folder / "output").mkdir()
    (folder / "output" / "demo").symlink_to(quick_demo[0])
    other = quick_demo[0] / demo.BASELINE
    command = [sys.executable, "-m", "maskx_d2", "app", "--max-upload", "1"]
    if (other / "config.yaml").is_file() and (other / "model_final.pth").is_file():
        command += ["--compare-config-file", other / "config.yaml"]
    command += ["--compare-weights", next(other.glob("model_final.*"))]
    process = subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(folder)}
    )
    try:
        said = process.stdout.readline()
        assert said.startswith("http://127.0.0.1:"), said
        yield said.split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 128 + signal.SIGINT
        left = {path.name for path in folder.iterdir()}
        assert left <= {"output", "torchinductor_root"}, left  # uploads are gone


@pytest.fixture
def page(browser, url):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#message")
    yield page
    assert page.errors == []
    page.close()


def drop(page, path):
    page.set_input_files("#image input[type=file]", path)


def shown(page) -> list[dict[str, int]]:
    """Of each model how many objects of A and of B are shown, and how many are not."""
    texts = page.get_by_text("Shown: ").all_inner_texts()
    numbers = [[int(word) for word in text.replace(".", "").split() if word.isdecimal()] for text in texts]
    return [dict(zip(("A", "B", "not"), of_model, strict=True)) for of_model in numbers]


def wait_for(page, condition):
    """Until what is shown is so."""
    for _ in range(100):
        if (found := shown(page)) and condition(found):
            return found
        page.wait_for_timeout(100)
    raise AssertionError(found)


def set_score(page, score):
    field = page.get_by_label("Minimum score").first
    field.fill(str(score))
    field.press("Enter")
    page.keyboard.press("Tab")


@pytest.fixture
def image(quick_demo):
    """One with objects on both sides."""
    dataset = quick_demo[0] / "dataset"
    return dataset / "test" / "000001.png"


def test_an_image_is_dropped_masks_appear_and_filters_choose_among_them(page, image, quick_demo):
    drop(page, image)
    page.wait_for_selector(MASKS)
    assert page.locator(MASKS).count() == 2
    before = wait_for(page, lambda found: len(found) == 2)
    totals = [sum(of_model.values()) for of_model in before]
    set_score(page, 0.05)
    everything = wait_for(
        page, lambda found: sum(of["not"] for of in found) < sum(of["not"] for of in before)
    )
    assert [sum(of_model.values()) for of_model in everything] == totals
    assert everything[0]["A"] > 0 and everything[0]["B"] > 0
    page.get_by_label("boxes only").check()
    of_b = wait_for(page, lambda found: found[0]["A"] == 0)
    assert [of["B"] for of in of_b] == [of["B"] for of in everything]
    page.get_by_label("all classes").check()
    wait_for(page, lambda found: found == everything)
    page.get_by_label("Class name contains").fill("GREEN")
    of_name = wait_for(page, lambda found: found[0]["A"] + found[0]["B"] < 10 and found != everything)
    listed = "td:first-child .cell-wrap:has-text"  # of rows in sight
    for colour in ("blue", "red", "yellow"):
        page.locator(f"{listed}('{colour}')").first.wait_for(state="hidden")
    assert page.locator(f"{listed}('green')").count() > 0
    assert of_name[0]["not"] > 0


def test_what_is_downloaded_is_a_picture_and_coco_json(page, image, tmp_path):
    drop(page, image)
    page.wait_for_selector(MASKS)
    set_score(page, 0.05)
    (first, _) = wait_for(page, lambda found: found[0]["A"] > 0)
    for label, path in (("Picture (PNG)", tmp_path / "a.png"), ("Masks (COCO JSON)", tmp_path / "a.json")):
        with page.expect_download() as download:
            page.get_by_text(label).first.click()
        download.value.save_as(path)
        assert download.value.suggested_filename.startswith("000001_masks.")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 640
    coco = COCO(str(tmp_path / "a.json"))
    assert coco.imgs[1]["file_name"] == "000001.png" and len(coco.cats) == 32
    assert len(coco.anns) == first["A"] + first["B"] > 0
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.shape == (128, 128) and mask.sum() == annotation["area"]


def test_an_example_is_chosen_and_no_other_host_is_asked_for_anything(page, url):
    page.locator("#examples button.thumbnail-item").nth(1).click()
    page.wait_for_selector(MASKS)
    assert "128 x 128 pixels" in page.inner_text("#message")
    assert page.asked and all(asked.startswith((url, "data:", "blob:")) for asked in page.asked)
    foreign = "fetch('https://example.com').then(() => 'asked', error => 'refused')"
    assert page.evaluate(foreign) == "refused"
    page.errors.clear()


def test_a_broken_upload_and_one_that_is_too_large_are_named_and_the_page_goes_on(page, image, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:100])
    drop(page, broken)
    page.get_by_text("broken.png cannot be read as an image").wait_for()
    assert page.locator(MASKS).count() == 0
    page.get_by_label("Clear").first.click()
    large = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large)
    assert large.stat().st_size > 2**20
    drop(page, large)
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    page.reload()
    drop(page, image)
    page.wait_for_selector(MASKS)


def test_an_image_of_more_pixels_than_allowed_is_named(page, tmp_path):
    Image.new("1", (13_000, 13_000)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 50_000
    drop(page, tmp_path / "large.png")
    page.get_by_text("it has 13000 x 13000 pixels, expected at most 50 megapixels").wait_for()


def test_a_page_that_is_closed_leaves_nothing_on_the_disk(browser, url, image, page_folder):
    page = browser.new_page()
    page.goto(url)
    before = set(page_folder.rglob("*_masks.png"))
    drop(page, image)
    page.wait_for_selector(MASKS)
    assert set(page_folder.rglob("*_masks.png")) - before
    page.close()
    for _ in range(100):
        if not set(page_folder.rglob("*_masks.png")) - before:
            break
        time.sleep(0.2)
    assert not set(page_folder.rglob("*_masks.png")) - before


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        (None, None, 200),
        (None, "http://{}", 200),
        ("localhost:{port}", "http://localhost:{port}", 200),
        ("evil.example:{port}", None, 403),
        ("evil.example:{port}", "http://evil.example:{port}", 403),
        ("192.168.0.1:{port}", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("[", None, 403),
        (None, "http://evil.example", 403),
        (None, "null", 403),
        (None, "http://127.0.0.1:1", 403),
    ],
)
def test_only_its_own_address_and_pages_are_answered(url, method, host, origin, status):
    address = urlsplit(url).netloc
    port = address.rpartition(":")[2]
    headers = {"Host": (host or address).format(port=port)}
    if origin is not None:
        headers["Origin"] = origin.format(address, port=port)
    if method == "OPTIONS":
        headers["Access-Control-Request-Method"] = "POST"
    connection = http.client.HTTPConnection(address)
    connection.request(method, "/config" if method == "GET" else "/gradio_api/upload", headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    if status == 403:
        assert (answer.status, text) == (403, "This page only answers requests to its own address.")
        assert not any(name.lower().startswith("access-control") for name, _ in answer.getheaders())
    else:
        assert answer.status not in (403, 500)
    connection.close()


def test_a_page_for_others_answers_to_numbers_and_its_own_name_alone():
    from maskx_d2.app.page import _OwnPagesAlone

    page = _OwnPagesAlone(None, address="0.0.0.0")
    for host in ("10.0.0.7:7860", "[fe80::1]:7860", "localhost", f"{socket.gethostname()}:7860"):
        assert page._is_own(host), host
    for host in ("evil.example", "10.0.0.7.evil.example", "", "*", "x@10.0.0.7.evil"):
        assert not page._is_own(host), host
    page = _OwnPagesAlone(None, address="Server.lan")
    assert page._is_own("server.lan:80") and not page._is_own("127.0.0.1")


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_is_no_wider_than_the_window(page, image, width):
    page.set_viewport_size({"width": width, "height": 900})
    drop(page, image)
    page.wait_for_selector(MASKS)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_users_mistakes_end_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cases = {
        (): "--weights is not given, and output/demo has no demo: give --weights, or run maskx demo",
        ("--config-file", "a.yaml"): "--config-file is given without the weights",
        ("--compare-config-file", "a.yaml"): "--compare-config-file is given without the weights",
        ("--weights", "absent.ckpt"): "--weights absent.ckpt is not a file",
    }
    for arguments, message in cases.items():
        with pytest.raises(SystemExit) as exit:
            main(["app", *arguments])
        assert exit.value.code == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_a_port_that_is_taken_is_named(tmp_path):
    from maskx_d2.app.page import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = f"port {port} is not free on 127.0.0.1, expected a free port: --port"
        with pytest.raises(InputError, match=message):
            serve({}, folder=tmp_path, port=port)
    with pytest.raises(InputError, match=r"port 99999 is not free"):
        serve({}, folder=tmp_path, port=99999)


def test_the_best_model_of_a_demo_is_that_of_the_highest_ap_on_b_but_for_the_oracle(tmp_path):
    assert demo.best_model(tmp_path) is None
    for folder, gain in ((tmp_path / "one", 1), (tmp_path / "many" / "seed_3", -1)):
        (folder / "stage1").mkdir(parents=True)
        ap = {"class_agnostic": 20, "maskx": 50, "maskx_box_supervised": 50 + gain, "oracle": 60}
        results = {name: {"segm": {"B": {"AP": value}}} for name, value in ap.items()}
        (folder / "results.json").write_text(json.dumps(results))
    assert demo.best_model(tmp_path / "one") == tmp_path / "one" / "maskx_box_supervised"
    (tmp_path / "many" / "results.json").write_text("{}")
    assert demo.best_model(tmp_path / "many") == tmp_path / "many" / "seed_3" / "maskx"
