"""Reading checkpoints as data: none of this runs code that a file brings along."""

from pathlib import Path

import torch


def read_checkpoint(path: str | Path) -> dict:
    """
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or holds something else than tensors and plain values.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} is no file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load lets through whatever a file that is none makes it stumble over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is refused: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, expected a dictionary")
    return content
