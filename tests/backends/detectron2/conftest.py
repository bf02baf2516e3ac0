from importlib.util import find_spec

import pytest

HAS_DETECTRON2 = find_spec("detectron2") is not None


class _NeedsDetectron2(pytest.Module):
    def collect(self):
        raise pytest.skip.Exception(
            "needs Detectron2, which is not installed (make detectron2)", allow_module_level=True
        )


def pytest_pycollect_makemodule(module_path, parent):
    return None if HAS_DETECTRON2 else _NeedsDetectron2.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def shapes_dataset(tmp_path_factory):
    """24 training and 8 test images of the demo's dataset."""
    from maskx_d2.demo import shapes

    return shapes.generate(tmp_path_factory.mktemp("shapes"), num_train=24, num_test=8, seed=0)


@pytest.fixture(autouse=True)
def forget_datasets():
    """What a test has registered is not in the way of others, which have their datasets elsewhere."""
    yield
    from . import tiny

    tiny.forget("shapes_train", "shapes_train_all_masks", "shapes_test", "taught")
