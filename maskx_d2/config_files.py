"""Where the configs are: in the package, or in the checkout that it is run from; and what one may hold."""

from pathlib import Path

import yaml

_MOST_NODES = 100_000


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


def check_yaml(path: Path) -> None:
    """
    Raises:
        ValueError: a file is not YAML, or one that grows as its anchors are followed ("billion laughs"),
            which would take all memory.
    """
    try:
        # Anchors stand for one node here, however often they are named.
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        size = 0 if root is None else _num_nodes(root, {})
    except RecursionError as error:
        raise ValueError(f"config {path} is nested too deep, or within itself") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {path}: {' '.join(str(error).split())}") from error
    if size > _MOST_NODES:
        raise ValueError(
            f"config {path} stands for {size:.1g} values, expected at most {_MOST_NODES:,}: its anchors "
            "repeat one another"
        )


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
