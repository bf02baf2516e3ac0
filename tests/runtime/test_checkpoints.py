import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from maskx_d2.runtime.checkpoints import check_finite, read_checkpoint

from .forged_pickles import name, number, text
from .test_pickles import CODE


def written(folder, pickled, *, storage=bytes(64), **options):
    path = folder / "a.pth"
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storage)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as before 1.6"])
def test_what_pytorch_saves_is_read_as_pytorch_reads_it(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    module = torch.nn.BatchNorm2d(3)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.rand(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [base, base[1:, ::2], base.T, torch.nn.Parameter(base[0])],
        "types": [torch.zeros(2, dtype=t) for t in (torch.bfloat16, torch.bool, torch.uint8, torch.int64)],
        "plain": OrderedDict(a=[1, 2.5, None, "é", (True, 2**70)], b=torch.Size([3]), c=torch.float16),
        "empty": torch.zeros(0, 3),
        "device": torch.device("cpu"),
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "a.pth")
    expected = torch.load(tmp_path / "a.pth", weights_only=True)
    assert read.keys() == expected.keys()
    torch.testing.assert_close({**read, "plain": 0, "device": 0}, {**expected, "plain": 0, "device": 0})
    assert (read["plain"], read["device"]) == (expected["plain"], expected["device"])


def of_tensor(count, size):
    pid = (
        b"("
        + text("storage")
        + name("torch FloatStorage")
        + text("0")
        + text("cpu")
        + number(count)
        + b"tQ"
    )
    strides = b"(" + number(0) * len(size) + b"t"
    sizes = b"(" + b"".join(map(number, size)) + b"t"
    made = name("torch._utils _rebuild_tensor_v2") + b"(" + pid + b"K\x00" + sizes + strides + b"\x89)tR"
    return b"}" + text("a") + made + b"s"


HEX = b"".join([name("_codecs encode") + b"h\x01" + text("hex") + b"\x86Rq\x01"] * 30)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (text("6162") + b"q\x01" + HEX, "it encodes text as 'hex', expected latin1"),
        (name("builtins bytearray") + number(4 * 10**9) + b"\x85R", "it holds builtins.bytearray"),
        (of_tensor(10**9, [2]), "a storage of 1,000,000,000 numbers, more than there are in the file"),
        (
            of_tensor(16, [250_000, 12_544]),
            r"a tensor of shape \(250000, 12544\), more than the 16 numbers",
        ),
        (CODE[2:-1], "it holds numpy.core.multiarray.scalar"),
        (b"]" * 2000 + b"a" * 1999, "nested deeper than 100 levels"),
    ],
    ids=["hex", "bytearray", "storage", "tensor", "code", "nested"],
)
def test_kilobytes_do_not_take_gigabytes(tmp_path, content, reason):
    path = written(tmp_path, b"\x80\x02" + content + b".")
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=f"a.pth is refused: .*{reason}"):
        read_checkpoint(path)


def test_storages_of_the_old_format_are_no_larger_than_the_file(tmp_path):
    torch.save({"a": torch.zeros(1234)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pth").read_bytes()
    assert content.count(b"M\xd2\x04") == 2  # of the storage, and of the tensor
    (tmp_path / "a.pth").write_bytes(content.replace(b"M\xd2\x04", b"J\xff\xff\xff\x7f"))
    with pytest.raises(ValueError, match="a storage of 2,147,483,647 numbers, more than there are"):
        read_checkpoint(tmp_path / "a.pth")


def test_compressed_files_are_refused_before_they_are_unpacked(tmp_path):
    path = written(tmp_path, bytes(200_000_000), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 300_000
    with pytest.raises(ValueError, match="it is compressed, which PyTorch's files are not"):
        read_checkpoint(path)


def test_a_file_with_two_pickles_is_refused(tmp_path):
    path = written(tmp_path, pickle.dumps({}, 2))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(ValueError, match="it was not written by PyTorch"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    state = {"a": torch.zeros(3), "b": np.array([0, value]), "c": torch.ones(2, dtype=torch.int64), "d": 1}
    with pytest.raises(ValueError, match=r"checkpoint x.pth: b has numbers that are NaN or infinite"):
        check_finite("x.pth", state)
    check_finite("x.pth", {**state, "b": np.array([0, 1e30])})
