"""
Pickles that only an attacker would write: ``python -m tests.runtime.forged_pickles SEED COUNT`` reads COUNT
of them, each as a pickle of arrays and as what ``torch.save`` writes, in a process of limited memory.
"""

import pickletools
import random
import resource
import sys
import tempfile
import zipfile
from pathlib import Path

from maskx_d2.runtime.checkpoints import read_checkpoint
from maskx_d2.runtime.pickles import read_array_pickle

MEMORY = 600 * 2**20
TYPE_CODES = (
    "O8",
    "O",
    "V8",
    "S4",
    "U1",
    "M8",
    "f4",
    "i8",
    "u1",
    "c16",
    "b1",
    ">f8",
    "|O",
    "f3",
    "",
    "f4,f4",
)
GLOBALS = (
    *("numpy dtype", "numpy ndarray", "numpy.core.multiarray _reconstruct", "builtins bytes"),
    *("numpy._core.multiarray scalar", "_codecs encode", "collections OrderedDict", "os system"),
    *("torch FloatStorage", "torch._utils _rebuild_tensor_v2", "builtins bytearray", "torch Size"),
)


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + len(content).to_bytes(4, "little") + content


def number(value: int) -> bytes:
    content = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def raw(content: bytes) -> bytes:
    return b"B" + len(content).to_bytes(4, "little") + content


def name(words: str) -> bytes:
    module, attribute = words.split()
    return f"c{module}\n{attribute}\n".encode()


def numpy_type(random: random.Random) -> bytes:
    state = [number(random.choice([3, 4, 0, -1])), text(random.choice("|<>=!xO"))]
    state += [random.choice([b"N", b"N", b"N", number(8), b")", b"]", text("f4")]) for _ in range(3)]
    state += [number(random.choice([-1, 0, 8, 63, 2**31])) for _ in range(3)]
    made = name("numpy dtype") + b"(" + text(random.choice(TYPE_CODES)) + b"\x89\x88tR"
    return made + (b"(" + b"".join(state[: random.randint(0, 8)]) + b"tb") * random.randint(0, 2)


def array(random: random.Random) -> bytes:
    core = random.choice(["numpy.core", "numpy._core"])
    content = raw(random.randbytes(random.choice([0, 1, 4, 8, 64])))
    if random.random() < 0.3:
        return name(f"{core}.multiarray scalar") + numpy_type(random) + content + b"\x86R"
    kind = name(random.choice(["numpy ndarray", "numpy ndarray", *GLOBALS]))
    sides = [0, 1, 2, 16, -1, 2**31, 2**62]
    shape = b"(" + b"".join(number(random.choice(sides)) for _ in range(random.randint(0, 3))) + b"t"
    made = name(f"{core}.multiarray _reconstruct") + kind + b"(K\x00tC\x01b\x87R"
    state = [number(1), shape, numpy_type(random), random.choice([b"\x88", b"\x89", b"N"]), content]
    return made + b"(" + b"".join(state[: random.choice([5, 5, 5, 3])]) + b"tb"


def sound(random: random.Random) -> bytes:
    """An array that may be read, in parts that are forged elsewhere."""
    count = random.randint(0, 5)
    shape, content = b"(" + number(count) + b"t", raw(random.randbytes(4 * count))
    kind = name("numpy dtype") + b"(" + text("f4") + b"\x89\x88tR(K\x03" + text("<") + b"NNN"
    kind += number(-1) * 2 + b"K\x00tb"
    start = name("numpy.core.multiarray _reconstruct") + name("numpy ndarray") + b"(K\x00tC\x01b\x87R"
    return start + b"(K\x01" + shape + kind + b"\x89" + content + b"tb"


def tensor(random: random.Random) -> bytes:
    storage = name(f"torch {random.choice(['FloatStorage', 'LongStorage', 'UntypedStorage'])}")
    numel = number(random.choice([0, 1, 10, 2**31, 2**47, 2**62, -1]))
    pid = b"(" + text("storage") + storage + text("0") + text("cpu") + numel + b"tQ"
    sizes = [b"(" + b"".join(number(random.choice([0, 1, 9, 2**20, 2**60])) for _ in range(2)) + b"t"] * 2
    arguments = pid + number(random.choice([0, 5, -1])) + sizes[0] + sizes[1] + b"\x89" + b")"
    return name("torch._utils _rebuild_tensor_v2") + b"(" + arguments + b"tR"


def bomb(random: random.Random) -> bytes:
    many = random.choice([10, 100, 200_000])
    return random.choice(
        [
            b"}" + b")" + b"\x85" * many + b"K\x01s",
            b"]" * many + b"a" * (many - 1),
            b"]" + b"".join(b"q\x01h\x01h\x01\x86" for _ in range(min(many, 5000))),
            b"Nr" + random.choice([10, 2**31, 2**32 - 1]).to_bytes(4, "little"),
            b"Np" + str(10 ** random.choice([1, 12, 400])).encode() + b"\n",
            b"".join(
                [name("_codecs encode"), text("61" * 400), text(random.choice(["latin1", "hex"])), b"\x86R"]
            ),
            name("builtins bytearray") + number(4 * 10**9) + b"\x85R",
            b"\x8d" + (2**62).to_bytes(8, "little"),
            b"\x8e" + (2**33).to_bytes(8, "little"),
            b"\x95" + (2**61).to_bytes(8, "little"),
            b"(" + b"\x8f" * many + b"l",
            b"\x8b" + (2**31 - 1).to_bytes(4, "little"),
        ]
    )


def anything(random: random.Random) -> bytes:
    """Opcodes with arguments that fit them or do not."""
    content = b""
    for _ in range(random.randint(1, 12)):
        opcode = random.choice(pickletools.opcodes)
        content += opcode.code.encode("latin1")
        if opcode.arg is not None:
            content += random.choice([b"\x01", b"\x00\x00\x00\x00", b"1\n", b"a\nb\n", random.randbytes(8)])
    return content


def forged(random: random.Random) -> bytes:
    parts = [array, array, numpy_type, tensor, bomb, anything]
    made = [random.choice(parts)(random)] * random.randint(0, 2)
    made += [sound(random)] * random.randint(0, 2)
    if random.random() < 0.2:
        made += [name(random.choice(GLOBALS)) + b")" + random.choice([b"R", b"\x81", b"b", b"o"])]
    content = b"(" + b"".join(random.sample(made, len(made))) + b"l"
    content = bytearray(b"\x80" + bytes([random.choice([2, 3, 4, 5])]) + content + b".")
    if random.random() < 0.3:
        for _ in range(random.randint(1, 4)):
            content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)


def read(content: bytes, folder: Path) -> int:
    """As all that it may be; how often it could be read."""
    pickle, zipped, legacy = folder / "a.pkl", folder / "a.pth", folder / "b.pth"
    pickle.write_bytes(content)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(64))
    magic = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    legacy.write_bytes(
        b"\x80\x02\x8a\x0a" + magic + b".\x80\x02M\xe9\x03.\x80\x02}." + content + b"\x80\x02]."
    )
    done = 0
    for path, reader in ((pickle, read_array_pickle), (zipped, read_checkpoint), (legacy, read_checkpoint)):
        try:
            reader(path)
            done += 1
        except MemoryError:
            raise SystemExit(f"memory: {content[:200]!r}") from None
        except Exception as error:  # as its callers make one sentence of it
            assert reader is read_array_pickle or isinstance(error, ValueError), content
            if isinstance(error.__cause__, MemoryError):
                raise SystemExit(f"memory: {content[:200]!r}") from None
    return done


def main(seed: int, count: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        done = 0
        for _ in range(count):
            content = forged(draw)
            Path(folder, "last").write_bytes(content)
            done += read(content, Path(folder))
    print(f"{count} pickles, {done} of {3 * count} readings went through")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
