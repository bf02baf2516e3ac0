import pytest

from ...hidden import detectron2_hidden_in_processes


@pytest.fixture(scope="package", autouse=True)
def without_detectron2(tmp_path_factory):
    with detectron2_hidden_in_processes(tmp_path_factory.mktemp("hidden")):
        yield
