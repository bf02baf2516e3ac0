"""Finds configs, in the package or in the checkout that it runs from, and checks their contents."""

import copy
from pathlib import Path

import yaml

from maskx_d2.data.errors import InputError, MissingFileError

_MOST_NODES = 100_000

RENAMED_KEYS = {
    "DATALOADER.DATASET_RATIO": "DATALOADER.MASKX_DATASET_RATIO",
    "DATASETS.REGISTER": "DATASETS.MASKX_REGISTER",
    "MODEL.ROI_MASK_HEAD.PREDICTOR": "MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR",
    "SOLVER.OPTIMIZER": "SOLVER.MASKX_OPTIMIZER",
    "TEST.CLASS_SPLIT": "TEST.MASKX_CLASS_SPLIT",
}
"""Config keys of 0.2.0 -> their names since then. Other projects also use keys with the old names."""


def config_file(name: str) -> Path:
    """
    Path of a config.

    Args:
        name: its path below ``configs/``, such as ``"maskx_R_50_FPN_1x.yaml"``.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(f"no config {name!r} in {package.parent / 'configs'}")


def check_yaml(path: Path) -> None:
    """
    Check the YAML of a config, and of the configs that it names as ``_BASE_``.

    Raises:
        FileNotFoundError: one of them is not a file.
        ValueError: a file is not YAML, has no keys, or grows so much when its anchors are followed
            ("billion laughs") that it would take all memory.
    """
    try:
        # Here an anchor stands for one node, however often it is used.
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode | None):
            raise InputError(f"config {path} is not a config, expected keys with their values")
        size = 0 if root is None else _num_nodes(root, {})
        for base in _bases(root):
            if not (path.parent / base).is_file():
                raise MissingFileError(f"config {path} names _BASE_ {base}, which is not a file")
            check_yaml(path.parent / base)
    except RecursionError as error:
        raise InputError(f"config {path} is nested too deep, or within itself") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: {' '.join(str(error).split())}") from error
    if size > _MOST_NODES:
        raise InputError(
            f"config {path} expands to {size:.1g} values, expected at most {_MOST_NODES:,}: its anchors "
            "repeat one another"
        )


def read_yaml(path: Path) -> dict:
    """
    Read a config as plain values.

    Raises:
        FileNotFoundError, ValueError: see :func:`check_yaml`, or it has something other than plain values.
    """
    check_yaml(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: {' '.join(str(error).split())}") from error


def with_new_keys(values: dict) -> dict:
    """
    A config as plain values. The ``config.yaml`` that a run of 0.2.0 wrote, which has all keys, gets
    today's names for them; any other config, which is hand-written, is returned unchanged.
    """
    if any(_parent(values, key) is None for key in RENAMED_KEYS):
        return values
    values = copy.deepcopy(values)
    for old, new in RENAMED_KEYS.items():
        parent = _parent(values, old)
        parent[new.rpartition(".")[2]] = parent.pop(old.rpartition(".")[2])
    return values


def _parent(values: dict, key: str) -> dict | None:
    """The dictionary that has the last part of a dotted key; None if there is none."""
    *nodes, last = key.split(".")
    for name in nodes:
        values = values.get(name)
        if not isinstance(values, dict):
            return None
    return values if last in values else None


def _bases(root: yaml.Node | None) -> list[Path]:
    """The ``_BASE_`` of a config, one path or several, as Detectron2 reads it; URLs are left out."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    named = [value for key, value in pairs if key.value == "_BASE_"]
    lists = [node.value if isinstance(node, yaml.SequenceNode) else [node] for node in named]
    paths = [node.value for nodes in lists for node in nodes if isinstance(node, yaml.ScalarNode)]
    return [Path(path).expanduser() for path in paths if "://" not in path]


def _num_nodes(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """The number of nodes that a node expands to."""
    if node not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[node] = 1 + sum(_num_nodes(child, known) for child in children)
    return known[node]
