# SPDX-License-Identifier: Apache-2.0
"""The GGUF container, both ways against the gguf package, and hostile heads."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.content import Entry
from gemmary.formats.gguf_file import Value, read_head, read_tensor, write_file
from gemmary.formats.quantize import BlockType
from gemmary.formats.storage import FileBytes

METADATA: dict[str, Value] = {
    "general.architecture": "gemma",
    "a.count": 7,
    "a.real": 1e-6,
    "a.flag": True,
    "a.text": "größer ▁",
    "a.texts": ("<pad>", "", "▁▁"),
    "a.reals": np.float32([0.5, -1]),
    "a.counts": np.int32([1, 2, 3]),
}


def rows(count: int = 3, columns: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, columns)).astype(np.float32)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    tensors = {
        f"t.{kind.name}": (kind, Entry(shape=(3, 64), read=rows))
        for kind in (BlockType.F32, BlockType.F16, BlockType.BF16, BlockType.Q8_0, BlockType.Q4_0)
    }
    write_file(tmp_path / "ours.gguf", METADATA, tensors)
    return tmp_path / "ours.gguf"


def test_the_gguf_package_reads_what_we_write(ours: Path) -> None:
    reader = GGUFReader(ours)
    for key, expected in METADATA.items():
        value = reader.fields[key].contents()
        got = np.asarray(value, expected.dtype) if isinstance(expected, np.ndarray) else value
        wanted = np.float32(expected) if isinstance(expected, float) else expected
        np.testing.assert_array_equal(got, list(wanted) if isinstance(wanted, tuple) else wanted, err_msg=key)
    assert len(reader.tensors) == 5
    for tensor in reader.tensors:
        assert tensor.shape.tolist() == [64, 3]  # innermost first
        expected = quants.quantize(rows(), GGMLQuantizationType[tensor.name.removeprefix("t.")])
        assert tensor.data.tobytes() == expected.tobytes()


def test_we_read_what_the_gguf_package_writes(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "theirs.gguf", "gemma")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.real", 1e-6)
    writer.add_float64("a.double", 0.1)
    writer.add_int8("a.small", -3)
    writer.add_uint64("a.large", 2**40)
    writer.add_bool("a.flag", False)
    writer.add_array("a.texts", ["a", "▁b"])
    writer.add_array("a.counts", [1, -2])
    writer.add_custom_alignment(64)
    for kind in (BlockType.F32, BlockType.F16, BlockType.Q5_1):
        packed = quants.quantize(rows(), GGMLQuantizationType[kind.name])
        writer.add_tensor(kind.name, packed, raw_dtype=GGMLQuantizationType[kind.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    head = read_head(tmp_path / "theirs.gguf")
    keys = {"a.count": 7, "a.real": 1e-6, "a.double": 0.1, "a.small": -3, "a.large": 2**40, "a.flag": False}
    assert {key: head.metadata[key] for key in keys} == keys
    assert head.metadata["a.texts"] == ("a", "▁b")
    np.testing.assert_array_equal(head.metadata["a.counts"], [1, -2])  # type: ignore[arg-type]  # an array
    source = FileBytes(tmp_path / "theirs.gguf")
    for name, tensor in head.tensors.items():
        kind = GGMLQuantizationType[name]
        expected = quants.dequantize(quants.quantize(rows(), kind), kind)
        np.testing.assert_array_equal(read_tensor(source, tensor), expected)


def test_a_large_tensor_is_read_in_parts_with_the_same_result(tmp_path: Path) -> None:
    many = rows(9000, 64)
    write_file(tmp_path / "a.gguf", {}, {"t": (BlockType.Q8_0, Entry(shape=many.shape, read=lambda: many))})
    got = read_tensor(FileBytes(tmp_path / "a.gguf"), read_head(tmp_path / "a.gguf").tensors["t"])
    packed = quants.quantize(many, GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(got, quants.dequantize(packed, GGMLQuantizationType.Q8_0))


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def head_of(*tensors: bytes, keys: bytes = b"", num_keys: int = 0, version: int = 3, count: int = -1) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors) if count < 0 else count, num_keys)
    return b"GGUF" + counts + keys + b"".join(tensors) + bytes(64)


HOSTILE = {
    "another beginning": (b"GGML" + bytes(60), "got hostile.gguf with another beginning"),
    "an old version": (head_of(version=1), "expected GGUF version 2 or 3, got 1"),
    "big-endian": (head_of(version=3 << 24), "expected GGUF version 2 or 3, got 50331648"),
    "2^60 tensors": (head_of(count=2**60), "expected fewer items than bytes"),
    "2^60 keys": (head_of(num_keys=2**60), "expected fewer items than bytes"),
    "a string of 2^62 bytes": (head_of(keys=struct.pack("<Q", 2**62), num_keys=1), "expected a string of"),
    "a string that is no UTF-8": (head_of(keys=struct.pack("<Q", 2) + b"\xff\xfe", num_keys=1), "strings in UTF-8"),
    "an unknown kind of key": (head_of(keys=text("a") + struct.pack("<I", 13), num_keys=1), "metadata type of 0 to 12"),
    "2^61 values": (head_of(keys=text("a") + struct.pack("<IIQ", 9, 6, 2**61), num_keys=1), "fewer items than bytes"),
    "2^61 strings": (head_of(keys=text("a") + struct.pack("<IIQ", 9, 8, 2**61), num_keys=1), "fewer items than bytes"),
    "lists of lists": (head_of(keys=text("a") + struct.pack("<IIQ", 9, 9, 1), num_keys=1), "metadata type of 0 to 12"),
    "a key twice": (head_of(keys=(text("a") + struct.pack("<II", 4, 1)) * 2, num_keys=2), "the key a once"),
    "no alignment": (
        head_of(keys=text("general.alignment") + struct.pack("<II", 4, 0), num_keys=1),
        "an alignment that is a multiple of 8",
    ),
    "a tensor twice": (head_of(tensor(), tensor()), "expected every tensor once, got t twice"),
    "no dimensions": (head_of(tensor(shape=())), "1 to 4 dimensions for t"),
    "five dimensions": (head_of(tensor(shape=(1,) * 5)), "1 to 4 dimensions for t"),
    "a size of zero": (head_of(tensor(shape=(0, 4))), "sizes > 0 for t"),
    "sizes past the end": (head_of(tensor(shape=(2**62, 2**62))), "t to end by byte"),
    "an offset past the end": (head_of(tensor(offset=2**63)), "t to end by byte"),
    "an unknown type": (head_of(tensor(kind=99)), "got ggml's type 99 for t"),
    "a removed type": (head_of(tensor(kind=4)), "expected a tensor type of F32, F16, Q4_0"),
    "a long name of two lines": (head_of(tensor("a\nb" * 999, kind=99)), "for a.ba.b"),
    "half a block": (head_of(tensor(shape=(33,), kind=2)), "t: expected rows of a multiple of 32"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_head_is_refused(what: str, tmp_path: Path) -> None:
    content, error = HOSTILE[what]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(FileError, match=error) as caught:
        read_head(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_every_cut_is_refused(ours: Path) -> None:
    raw, tensors = ours.read_bytes(), read_head(ours).tensors.values()
    for end in range(0, max(tensor.start + tensor.num_bytes for tensor in tensors), 3):
        ours.write_bytes(raw[:end])
        with pytest.raises(FileError):
            read_head(ours)


def test_nothing_is_written_when_the_rows_do_not_fit(tmp_path: Path) -> None:
    one = (BlockType.Q4_0, Entry(shape=(2, 33), read=lambda: rows(2, 33)))
    with pytest.raises(InputError, match="expected rows of a multiple of 32"):
        write_file(tmp_path / "a.gguf", {}, {"t": one})
    assert not list(tmp_path.iterdir())


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    one = (BlockType.F16, Entry(shape=(2,), read=lambda: np.float32([1, 1e6])))
    with pytest.raises(InputError, match="expected values within float16 in t"):
        write_file(tmp_path / "a.gguf", {}, {"t": one})
    assert not list(tmp_path.iterdir())


def test_a_file_cut_while_it_is_open_gives_an_error(ours: Path) -> None:
    head, source = read_head(ours), FileBytes(ours)
    with ours.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(FileError, match="it was cut while open"):
        read_tensor(source, head.tensors["t.Q4_0"])


def test_a_block_with_nan_is_refused_when_it_is_read(ours: Path) -> None:
    head = read_head(ours)
    with ours.open("r+b") as file:
        file.seek(head.tensors["t.Q8_0"].start)
        file.write(np.float16(np.nan).tobytes())
    with pytest.raises(CheckpointError, match="NaN or infinity in a block of Q8_0"):
        read_tensor(FileBytes(ours), head.tensors["t.Q8_0"])
