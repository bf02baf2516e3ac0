"""A counter of what a GPU would have to be waited for."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_WAIT = ("nonzero", "_local_scalar_dense", "unique", "_unique2", "masked_select", "equal", "is_nonzero")
_PICK = ("index", "index_put", "index_put_", "_index_put_impl_")
_TO_HOST = ("tolist", "cpu", "numpy")


class Waits(TorchDispatchMode):
    """
    Counts operations whose result has a size, or is a number, that the host needs: by name. Picking by bool
    is one of them. Copies to the host do nothing on a CPU and are seen where they are called, in Python.
    """

    def __init__(self):
        super().__init__()
        self.counts: dict[str, int] = {}
        self._copies = _Copies(self)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def note(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def __enter__(self):
        self._copies.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._copies.__exit__(*exception)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in _WAIT:
            self.note(name)
        elif name in _PICK and any(_is_bool(x) for x in tree_iter(args[1])):
            self.note(f"{name} by bool")
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in _TO_HOST:
            self.waits.note(func.__name__)
        return func(*args, **(kwargs or {}))


def _is_bool(x) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)
