"""``maskx app``: a page in the browser that shows what a model finds."""

import argparse
import os
import tempfile
from pathlib import Path

from maskx_d2.commands.options import (
    DEMO_FOLDER,
    add_input,
    add_max_megapixels,
    add_model_options,
    at_least,
)
from maskx_d2.data.errors import InputError
from maskx_d2.runtime.optional_packages import DRAWING, need

_NUM_EXAMPLES = 6


def add_parser(commands: argparse._SubParsersAction) -> None:
    app = commands.add_parser(
        "app",
        help="show masks of an image in the browser",
        description="Serve a web page that shows what a model detects in an image, or two models side by "
        f"side. Without --weights, it uses the best model of the demo in {DEMO_FOLDER} and offers images "
        "of the demo.",
    )
    add_model_options(app, required=False)
    add_input(app, "--compare-weights", metavar="FILE", help="checkpoint of a second model")
    add_input(app, "--compare-config-file", metavar="FILE", help="its config, if it needs one")
    add_input(app, "--images", type=Path, metavar="DIR", help="folder of example images")
    app.add_argument(
        "--address",
        default="127.0.0.1",
        help="address to bind to (default: localhost only); 0.0.0.0 allows other machines",
    )
    app.add_argument("--port", type=at_least(1), metavar="N", help="default: the first free port from 7860")
    app.add_argument(
        "--max-upload", type=at_least(1), default=30, metavar="MIB", help="largest upload, default 30 MiB"
    )
    add_max_megapixels(app)
    app.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    need("maskx app", "gradio", *DRAWING)
    from maskx_d2.backends.load import load_detector
    from maskx_d2.evaluation.fonts import missing_letters
    from maskx_d2.inference.predict import find_images

    files = {
        (args.weights, args.config_file): "--config-file",
        (args.compare_weights, args.compare_config_file): "--compare-config-file",
    }
    for (weights, config_file), option in files.items():
        if weights is None and config_file is not None:
            raise InputError(f"{option} is given without the weights of its model")
    images = args.images
    models = [(weights, config_file) for weights, config_file in files if weights is not None]
    if args.weights is None:
        models = [_demo_model(), *models]
        images = images or _demo_images(Path(models[0][0]))
    titles = _titles([weights for weights, _ in models])
    detectors = {t: load_detector(*model) for t, model in zip(titles, models, strict=True)}
    for detector in detectors.values():
        if notice := missing_letters(detector.style.names.values()):
            print(notice)
    examples = [] if images is None else find_images([images])[:_NUM_EXAMPLES]
    with tempfile.TemporaryDirectory(prefix="maskx_d2_") as folder:
        # So that uploads are deleted with the folder. Set before the import, at which Gradio creates it;
        # Gradio's default folder may belong to another user.
        os.environ["GRADIO_TEMP_DIR"] = folder
        from maskx_d2.app.page import serve

        serve(
            detectors,
            folder=Path(folder),
            examples=examples,
            address=args.address,
            port=args.port,
            max_upload=args.max_upload,
            max_megapixels=args.max_megapixels,
        )


def _demo_model() -> tuple[str, str | None]:
    """Weights and config of the best model of the demo."""
    from maskx_d2.demo.run import best_model

    folder = best_model(DEMO_FOLDER)
    if folder is None:
        raise InputError(
            f"--weights is not given, and {DEMO_FOLDER} has no demo: give --weights, or run maskx demo "
            "first to show its best model"
        )
    weights = folder / "model_final.ckpt"
    if weights.is_file():
        return str(weights), None
    return str(folder / "model_final.pth"), str(folder / "config.yaml")


def _demo_images(weights: Path) -> Path:
    return weights.parents[1] / "dataset" / "test"


def _titles(paths: list[str]) -> list[str]:
    """Titles of models: the names of their folders, or their paths if two folders have the same name."""
    from maskx_d2.data.files import real_path

    names = [real_path(path).parent.name for path in paths]
    return names if len(set(names)) == len(names) else paths
