"""Refusing checkpoints that would run code when Detectron2 loads them."""

import pickle
from pathlib import Path
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

# All that the checkpoints of Detectron2's model zoo and of ImageNet pre-training are made of.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", f) for core in ("core", "_core") for f in ("_reconstruct", "scalar")),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows arrays and the types that pickle has built in."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise ValueError(
                f"it holds {module}.{name}, expected nothing but arrays: loading it could run code"
            )
        return super().find_class(module, name)


def check_weights(path: str) -> None:
    """
    Read a checkpoint as data before Detectron2 unpickles it.

    Args:
        path: as in MODEL.WEIGHTS: a file, an address that Detectron2 knows, or empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or holds something else than arrays, tensors and plain values.
    """
    if not path:
        return
    # Detectron2 takes options from a query behind the name.
    path = urlparse(path)._replace(query="").geturl()
    if "://" not in path:
        if not Path(path).is_file():
            raise FileNotFoundError(f"MODEL.WEIGHTS: checkpoint {path} is no file")
        if Path(path).stat().st_size == 0:
            raise ValueError(f"checkpoint {path} is empty")
    try:
        if path.endswith(".pkl"):
            with PathManager.open(path, "rb") as file:
                _ArrayUnpickler(file, encoding="latin1").load()
        elif torch.__version__ < torch.torch_version.TorchVersion("2.6"):
            # Later ones refuse by themselves.
            torch.load(PathManager.get_local_path(path), map_location="cpu", weights_only=True)
    except (ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint {path} is refused: {error}") from error


def check_before_loading(checkpointer: DetectionCheckpointer, path: str, *, resume: bool) -> None:
    """``check_weights``, unless ``checkpointer.resume_or_load`` will resume and not read ``path``."""
    if not (resume and checkpointer.has_checkpoint()):
        check_weights(path)
