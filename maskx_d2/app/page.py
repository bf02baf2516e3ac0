"""``maskx app``: a web page that shows what one or two models find in an image."""

import hashlib
import ipaddress
import math
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskx_d2.app.results import COLUMNS, SIDES, Choice, choose, coco_json, picture, summary, table
from maskx_d2.data.errors import InputError
from maskx_d2.data.files import write_json, write_png
from maskx_d2.data.images import MAX_MEGAPIXELS, read_image
from maskx_d2.data.printable import in_markdown, printable
from maskx_d2.inference.detector import Detector
from maskx_d2.inference.predict import IMAGE_SUFFIXES

_NO_IMAGE = "No image yet."
_SECONDS_KEPT = 3600
_MIN_SCORE = 0.05  # detections below it are not kept; the slider starts here
# With this policy a browser contacts no other host, whatever the page contains.
_OWN_HOST_ALONE = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
_CSS = """
footer { display: none !important; }
.gradio-container { max-width: 1500px !important; }
#examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)); }
#examples .grid-wrap { height: auto; max-height: none; }
"""


@dataclass(frozen=True)
class _Seen:
    """An image and its detections, by the title of the model. The pixels stay on disk."""

    name: str
    path: Path
    size: tuple[int, int]
    found: Mapping[str, list[dict]]
    folder: Path
    """Folder of the files that can be downloaded."""


def page(
    models: Mapping[str, Detector],
    *,
    folder: Path,
    examples: Sequence[Path] = (),
    max_megapixels: float = MAX_MEGAPIXELS,
) -> gr.Blocks:
    """
    Args:
        models: the models by title; their detections are shown side by side.
        folder: folder for images, pictures and JSON files. A page's files are deleted when it is closed.
        examples: images to choose from.
        max_megapixels: larger images are refused.
    """
    with gr.Blocks(
        title="maskx", analytics_enabled=False, delete_cache=(_SECONDS_KEPT, _SECONDS_KEPT)
    ) as blocks:
        seen = gr.State(None, time_to_live=_SECONDS_KEPT, delete_callback=_forget)
        gr.Markdown("# Masks for all classes")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                dropped = gr.File(
                    label="Drop an image here, or choose one",
                    file_types=list(IMAGE_SUFFIXES),
                    elem_id="image",
                    height=160,
                )
                gallery = None
                if examples:
                    gr.Markdown("or choose an example")
                    gallery = gr.Gallery(
                        [str(path) for path in examples],
                        show_label=False,
                        elem_id="examples",
                        height=230,
                        object_fit="cover",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                    )
                choices = [
                    gr.Slider(_MIN_SCORE, 1, Choice.min_score, step=0.01, label="Minimum score"),
                    gr.Slider(1, 100, Choice.most, step=1, label="Maximum number of objects"),
                    gr.Textbox("", label="Class name contains", elem_id="class-name"),
                    gr.Radio(
                        [(title, side) for side, title in SIDES.items()], value=Choice.side, label="Classes"
                    ),
                ]
            with gr.Column(scale=3, min_width=320):
                message = gr.Markdown(_NO_IMAGE, elem_id="message")
                with gr.Row():
                    results = [_result(title) for title in models]
        outputs = [component for result in results for component in result]

        def show(seen: _Seen | None, *values) -> list:
            return _show(models, seen, Choice(*values))

        def see(path: str | None, before: _Seen | None, request: gr.Request):
            _forget(before)
            if path is None:
                return None, _NO_IMAGE
            own = _folder_of(request, folder)
            own.mkdir(exist_ok=True)
            try:
                new = _see(models, Path(path), own, max_megapixels)
            except InputError as error:
                return None, in_markdown(str(error).replace(path, Path(path).name))
            width, height = new.size
            return new, f"**{in_markdown(new.name)}**, {width} x {height} pixels"

        def see_example(event: gr.SelectData, before: _Seen | None, request: gr.Request):
            return see(str(examples[event.index]), before, request)

        def close(request: gr.Request) -> None:
            shutil.rmtree(_folder_of(request, folder), ignore_errors=True)

        # One at a time, because each event deletes the files that the previous one left in the folder.
        options = {"show_progress": "minimal", "api_visibility": "private", "concurrency_id": "one"}
        showing = {"fn": show, "inputs": [seen, *choices], "outputs": outputs, **options}
        for event in (dropped.upload, dropped.clear):
            event(see, [dropped, seen], [seen, message], **options).then(**showing)
        if gallery is not None:
            gallery.select(see_example, [seen], [seen, message], **options).then(**showing)
        for choice in choices:
            changed = choice.release if isinstance(choice, gr.Slider) else choice.change
            changed(trigger_mode="always_last", **showing)
        blocks.unload(close)
    return blocks


def serve(
    models: Mapping[str, Detector],
    *,
    folder: Path,
    examples: Sequence[Path] = (),
    address: str = "127.0.0.1",
    port: int | None = None,
    max_upload: int = 30,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> None:
    """
    Show the page until the process is stopped.

    Args:
        models, folder, examples, max_megapixels: see :func:`page`.
        address: address to bind to. By default only this machine can connect; ``"0.0.0.0"`` also allows
            other machines. Requests for another host name, and from pages of other hosts, are refused.
        port: port to listen on; if None, the first free port from 7860.
        max_upload: largest image file in MiB.

    Raises:
        ValueError: the port is not free.
    """
    blocks = page(models, folder=folder, examples=examples, max_megapixels=max_megapixels)
    blocks.queue(default_concurrency_limit=1)
    try:
        blocks.launch(
            server_name=address,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=f"{max_upload}mb",
            allowed_paths=[str(path.resolve()) for path in examples],
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=gr.themes.Default(),
            css=_CSS,
        )
    except (OSError, OverflowError) as error:
        ports = "7860 and those after it are" if port is None else f"{port} is"
        raise InputError(f"port {ports} not free on {address}, expected a free port: --port") from error
    # Must be the outermost middleware, because Gradio's own allows other origins.
    blocks.app.middleware_stack = _OwnPagesAlone(blocks.app.middleware_stack, address=address)
    print(f"http://{address}:{blocks.server_port} (Ctrl-C to stop)", flush=True)
    blocks.block_thread()


def _result(title: str) -> list[gr.components.Component]:
    """The components that show the results of a model; :func:`_show` returns their values."""
    with gr.Column(min_width=320):
        gr.Markdown(f"### {in_markdown(title)}")
        drawn = gr.Image(
            show_label=False,
            type="filepath",
            interactive=False,
            buttons=["fullscreen"],
            alt_text="the image with the masks that were found",
        )
        said = gr.Markdown("")
        with gr.Row():
            downloads = [
                gr.DownloadButton(label, interactive=False, size="sm", min_width=120)
                for label in ("Picture (PNG)", "Masks (COCO JSON)")
            ]
        objects = gr.Dataframe(
            headers=list(COLUMNS), interactive=False, label="Objects", max_height=420, buttons=[]
        )
    return [drawn, said, *downloads, objects]


def _folder_of(request: gr.Request, folder: Path) -> Path:
    """The folder of one open page. The page chooses its own session hash, which may be any text."""
    return folder / hashlib.sha256(str(request.session_hash).encode()).hexdigest()


def _see(models: Mapping[str, Detector], path: Path, folder: Path, max_megapixels: float) -> _Seen:
    image, found = read_image(path, max_megapixels=max_megapixels), {}
    for title, detector in models.items():
        (detections,) = detector.coco_results([image], [1])
        found[title] = [d for d in detections if d["score"] >= _MIN_SCORE]
    own = Path(tempfile.mkdtemp(dir=folder))
    kept = own / f"image{path.suffix}"
    shutil.copyfile(path, kept)
    return _Seen(printable(path.name), kept, image.size, found, own)


def _show(models: Mapping[str, Detector], seen: _Seen | None, choice: Choice) -> list:
    if seen is None or not seen.path.is_file():  # the page was closed
        return [value for _ in models for value in _nothing()]
    # A new folder each time, because browsers cache files by URL.
    for old in seen.folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
    image = read_image(seen.path, max_megapixels=math.inf)  # checked by _see()
    values = []
    for title, detector in models.items():
        style, found = detector.style, seen.found[title]
        shown = choose(found, style, choice)
        folder = Path(tempfile.mkdtemp(dir=seen.folder))
        stem = Path(seen.name).stem or "image"
        drawn, annotations = folder / f"{stem}_masks.png", folder / f"{stem}_masks.json"
        write_png(drawn, picture(image, shown, style))
        write_json(annotations, coco_json(shown, style, file_name=seen.name, size=seen.size))
        values += [
            str(drawn),
            summary(found, shown, style),
            gr.DownloadButton(value=str(drawn), interactive=True),
            gr.DownloadButton(value=str(annotations), interactive=True),
            table(shown, style),
        ]
    return values


def _nothing() -> list:
    closed = gr.DownloadButton(value=None, interactive=False)
    return [None, "", closed, closed, []]


def _forget(seen: _Seen | None) -> None:
    if seen is not None:
        shutil.rmtree(seen.folder, ignore_errors=True)


class _OwnPagesAlone:
    """
    Answers only requests from its own page, and sends its content security policy with every response. A
    page elsewhere can let its own host name resolve to this address (DNS rebinding), but not a number.
    """

    def __init__(self, app: ASGIApp, *, address: str):
        """
        Args:
            app: the wrapped application.
            address: see :func:`serve`.
        """
        self.app = app
        self.answers_to_numbers = address in ("0.0.0.0", "::")
        if self.answers_to_numbers:
            self.names = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
        elif address in ("127.0.0.1", "::1", "localhost"):
            self.names = {"127.0.0.1", "::1", "localhost"}
        else:
            self.names = {address.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host) or (origin is not None and urlsplit(origin).netloc != host):
            refusal = PlainTextResponse(
                "This page only answers requests to its own address.", status_code=403
            )
            await refusal(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _OWN_HOST_ALONE.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.names or (self.answers_to_numbers and _is_number(name))


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
