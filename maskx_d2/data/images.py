"""Reading image files."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


def read_image(path: Path) -> Image.Image:
    """
    An image in RGB, upright as its EXIF data say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image {path} does not exist") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
