"""Where the configs are: in the package, or in the checkout that it is run from."""

from pathlib import Path


def config_file(name: str) -> Path:
    """
    Path of a config.

    Args:
        name: its path below ``configs/``, as ``"maskx_R_50_FPN_1x.yaml"``.
    """
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no config {name!r} in {package.parent / 'configs'}")
