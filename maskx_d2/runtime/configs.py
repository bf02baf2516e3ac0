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
"""Detectron2 config keys of 0.2.0 and their names since: other projects have keys of the old names."""


def config_file(name: str) -> Path:
    """
    Path of a config.

    Args:
        name: its path below ``configs/``, as ``"maskx_R_50_FPN_1x.yaml"``.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(f"no config {name!r} in {package.parent / 'configs'}")


def check_yaml(path: Path) -> None:
    """
    Of a config, and of those that it names as ``_BASE_``.

    Raises:
        FileNotFoundError: one of these is not a file.
        ValueError: a file is not YAML, has no keys, or grows as its anchors are followed ("billion
            laughs"), which would take all memory.
    """
    try:
        # Anchors stand for one node here, however often they are named.
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode | None):
            raise InputError(f"config {path} is no config, expected keys with their values")
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
            f"config {path} stands for {size:.1g} values, expected at most {_MOST_NODES:,}: its anchors "
            "repeat one another"
        )


def read_yaml(path: Path) -> dict:
    """
    A config as plain values.

    Raises:
        FileNotFoundError, ValueError: see :func:`check_yaml`; it has anything but plain values.
    """
    check_yaml(path)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: {' '.join(str(error).split())}") from error


def is_run_config(values: dict) -> bool:
    """Whether a run of 0.2.0 wrote these values as its ``config.yaml``: such a file has all keys."""
    return all(_parent(values, key) is not None for key in RENAMED_KEYS)


def with_new_keys(values: dict) -> dict:
    """
    A config as plain values, with today's names for the keys of :func:`is_run_config`; others, which a
    person wrote, are returned as they are.
    """
    if not is_run_config(values):
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
    """Of a config, as Detectron2 reads it: a path, or several; addresses are for Detectron2 to open."""
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    named = [value for key, value in pairs if key.value == "_BASE_"]
    lists = [node.value if isinstance(node, yaml.SequenceNode) else [node] for node in named]
    paths = [node.value for nodes in lists for node in nodes if isinstance(node, yaml.ScalarNode)]
    return [Path(path).expanduser() for path in paths if "://" not in path]


def _num_nodes(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Of what a node stands for."""
    if node not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[node] = 1 + sum(_num_nodes(child, known) for child in children)
    return known[node]
