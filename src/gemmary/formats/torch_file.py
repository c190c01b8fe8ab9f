# SPDX-License-Identifier: Apache-2.0
"""gemma_pytorch checkpoints: torch's zip of one pickle and raw storages, read and written without torch or pickle.

    name/data.pkl   {"model_state_dict": {"embedder.weight": tensor(storage 0, offset, shape, strides), ...}}
    name/data/0     the bytes of storage 0

A pickle is a program, and running it would run whatever its author wrote. Here a small machine knows the twenty-odd
opcodes and the few names that torch.save writes for tensors; whatever else comes is an error that says what it was.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, asdict, dataclass, fields
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.content import Checkpoint, Entry, Fields, bind, cast, num_bytes, unbind
from gemmary.formats.sentencepiece import read_sentencepiece, write_sentencepiece
from gemmary.formats.storage import FileBytes, shown, written_whole
from gemmary.formats.tensors import Stored, Weight

_STORAGES: Mapping[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}
_BUFFERS = {"ComplexFloatStorage", "LongStorage", "IntStorage", "BoolStorage"}  # tables that gemma_pytorch saves too
_NAMES = {dtype: name for name, dtype in _STORAGES.items()}
_IGNORED = re.compile(r"(local_|global_)?freqs_cis$|.*(siglip_vision_model|mm_)|sampler\.")
_MAX_PICKLE = 1 << 24
_STATE, _CONFIG = "model_state_dict", "gemmary_config"


def read_torch(path: Path) -> Checkpoint:
    """Open a gemma_pytorch .ckpt; tokenizer.model is taken from beside it.

    The file names no configuration: ours is in those written here, otherwise the shapes must be a published Gemma's.
    Raises FileError for a damaged file and for a pickle that does more than list tensors, CheckpointError for tensors
    that do not fit.

    >>> read_torch(Path("no-such-file"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a readable file, got no-such-file: No such file or directory
    """
    source = FileBytes(path)
    members = _members(source)
    root = next((name.removesuffix("data.pkl") for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)), None)
    if root is None:
        raise FileError(f"expected torch's data.pkl in {path.name}, got {len(members)} other files: give a .ckpt")
    start, length = members[f"{root}data.pkl"]
    if length > _MAX_PICKLE:
        raise FileError(f"expected a data.pkl of at most {_MAX_PICKLE} bytes in {path.name}, got {length}")
    content = _unpickle(source.read(start, length).tobytes(), path.name)
    if not isinstance(content, dict) or not isinstance(content.get(_STATE), dict):
        raise FileError(f"expected {_STATE} in {path.name}, got something else: give a checkpoint of gemma_pytorch")
    entries = {
        str(name): _entry(source, members, root, str(name), tensor)
        for name, tensor in content[_STATE].items()
        if isinstance(tensor, _Tensor) and tensor.storage.dtype is not None
    }
    config = _config(content.get(_CONFIG), entries, path.name)
    pieces = path.with_name("tokenizer.model")
    return Checkpoint(
        config=config,
        tensors=bind(config, entries, _name, _IGNORED),
        vocabulary=read_sentencepiece(pieces) if pieces.exists() else None,
    )


def _name(row: Weight, layer: int | None) -> tuple[str, Stored]:
    return row.torch.at(layer), row.torch


def _members(source: FileBytes) -> dict[str, tuple[int, int]]:
    """Where each stored file of the zip lies: its start and length."""
    try:
        with source.path.open("rb") as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, OverflowError, EOFError) as error:
        raise FileError(
            f"expected torch's zip format, got {source.path.name} which is not ({error}): an older pickle is not read, "
            "as it may run code; save it again with torch >= 1.6"
        ) from None
    members: dict[str, tuple[int, int]] = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise FileError(
                f"expected files stored plainly in {source.path.name}, got {shown(info.filename)} compressed"
            )
        if info.filename in members:
            raise CheckpointError(f"expected every file once in {source.path.name}, got {shown(info.filename)} twice")
        local = source.read(info.header_offset, 30)
        lengths = local[26:30].view("<u2")
        members[info.filename] = info.header_offset + 30 + int(lengths.sum(dtype=np.int64)), info.file_size
    return members


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype[Any] | None  # None: a table that we do not need
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _entry(source: FileBytes, members: Mapping[str, tuple[int, int]], root: str, name: str, tensor: _Tensor) -> Entry:
    dtype, shape = tensor.storage.dtype, tensor.shape
    assert dtype is not None, "filtered by the caller"
    called = shown(name)
    contiguous = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    if tensor.strides != contiguous or not shape or min(shape) < 1:
        raise CheckpointError(
            f"expected {called} laid out row by row, got shape {shown(shape)} with strides {shown(tensor.strides)}"
        )
    member = members.get(f"{root}data/{tensor.storage.key}")
    begin = tensor.offset * dtype.itemsize
    if member is None or begin < 0 or begin + num_bytes(shape, dtype) > member[1]:
        raise CheckpointError(f"expected the bytes of {called} in {source.path.name}, got fewer: fetch the file again")
    return Entry(shape=shape, read=partial(_read, source, member[0] + begin, dtype, shape))


def _read(source: FileBytes, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return source.read(start, num_bytes(shape, dtype)).view(dtype).reshape(shape)


def _config(values: Any, entries: Mapping[str, Entry], where: str) -> GemmaConfig:
    if isinstance(values, dict):
        try:
            return GemmaConfig(**{field.name: _checked(field, Fields(values, where)) for field in fields(GemmaConfig)})
        except InputError as error:
            raise FileError(f"{where}: {error}") from None
    for config in dict.fromkeys(PRESETS.values()):
        try:
            bind(config, entries, _name, _IGNORED)
        except CheckpointError:
            continue
        return config
    raise CheckpointError(
        f"expected the tensors of a published Gemma in {where}, got other shapes: give another format"
    )


def _checked(field: Field[Any], values: Fields) -> Any:
    """A field of the configuration, of the kind that GemmaConfig declares."""
    kinds: Mapping[Any, Callable[[str], Any]] = {int: values.size, float: values.real, float | None: values.optional}
    if field.type in kinds:
        return kinds[field.type](field.name)
    if field.type is bool:
        return values.flag(field.name, bool(field.default))
    pattern = values.values.get(field.name)
    if not isinstance(pattern, list) or not all(each is None or isinstance(each, int) for each in pattern):
        raise FileError(f"expected a list of windows for {field.name} in {values.where}, got {shown(pattern)}")
    return tuple(pattern)


def _unpickle(program: bytes, where: str) -> Any:
    """What a pickle builds, by a machine that knows tensors and plain values only."""
    machine = _Machine(where)
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if machine.step(opcode.name, argument):
                return machine.stack[-1]
    except FileError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FileError(
            f"expected a pickle of tensors in {where}, got a damaged one ({error!s:.60}): fetch it again"
        ) from None
    raise FileError(f"expected a pickle of tensors in {where}, got one without an end: fetch the file again")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, where: str) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._where = where

    def step(self, opcode: str, argument: Any) -> bool:
        """Do one instruction; whether it was the last."""
        if opcode in _PLAIN:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif opcode == "MARK":
            self._marks.append(len(self.stack))
        elif opcode == "GLOBAL":
            self.stack.append(self._named(argument))
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self)
        elif opcode not in ("PROTO", "STOP"):
            raise FileError(
                f"expected a pickle of tensors in {self._where}, got the opcode {opcode}: do not trust this file"
            )
        return opcode == "STOP"

    def _named(self, argument: str) -> Any:
        name = argument.replace(" ", ".")
        kind = name.removeprefix("torch.")
        if kind in _STORAGES or kind in _BUFFERS:
            return _Storage(_STORAGES.get(kind), "")
        if re.fullmatch(r"torch\.\w+Storage", name):
            raise FileError(
                f"expected float32, float16 or bfloat16 in {self._where}, got {name}: save it in one of them"
            )
        if name not in _FUNCTIONS:
            raise FileError(
                f"expected a pickle that only lists tensors in {self._where}, got a use of {shown(name)}: "
                "it could run code; do not trust this file"
            )
        return _FUNCTIONS[name]

    def above_mark(self) -> list[Any]:
        """Take what was put on the stack since the last mark."""
        mark = self._marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def take(self, count: int) -> tuple[Any, ...]:
        """Take the last items of the stack."""
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def set_items(self, pairs: list[Any]) -> None:
        """Put keys and values into the dictionary on top."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items for something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):
                raise TypeError("a key that is neither text nor a number")  # and could be nested beyond any stack
            if key in target:
                raise CheckpointError(f"expected every tensor once in {self._where}, got {shown(key)} twice")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        """Put items at the end of the list on top."""
        if not isinstance(self.stack[-1], list):
            raise TypeError("items for something that is no list")
        self.stack[-1].extend(items)

    def call(self) -> None:
        """Replace one of our functions and its arguments by its result."""
        function, arguments = self.take(2)
        if function not in _FUNCTIONS.values() or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is no function")
        self.stack.append(function(*arguments))

    def storage(self) -> None:
        """Replace torch's name of a storage by a storage."""
        (name,) = self.take(1)
        match name:
            case ("storage", _Storage() as kind, str(key), str(), int()):
                self.stack.append(_Storage(kind.dtype, key))
            case _:
                raise ValueError("a storage of another form")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    numbers = (offset, *shape, *strides)
    is_small = len(numbers) <= 17 and all(isinstance(each, int) and 0 <= each < 2**62 for each in numbers)
    if not isinstance(storage, _Storage) or not is_small:
        raise ValueError("a tensor of another form")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _ordered(*pairs: Any) -> dict[Any, Any]:
    if pairs:
        raise ValueError("an ordered dictionary of another form")
    return {}


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered,
}
_PLAIN = {"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_ACTIONS: Mapping[str, Callable[[_Machine], object]] = {
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.above_mark())),
    "TUPLE1": lambda machine: machine.stack.append(machine.take(1)),
    "TUPLE2": lambda machine: machine.stack.append(machine.take(2)),
    "TUPLE3": lambda machine: machine.stack.append(machine.take(3)),
    "SETITEM": lambda machine: machine.set_items(list(machine.take(2))),
    "SETITEMS": lambda machine: machine.set_items(machine.above_mark()),
    "APPEND": lambda machine: machine.extend(list(machine.take(1))),
    "APPENDS": lambda machine: machine.extend(machine.above_mark()),
    "BUILD": lambda machine: machine.take(1),  # a state dict's version numbers, which we do not need
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.storage,
}


def write_torch(checkpoint: Checkpoint, path: Path, dtype: str) -> None:
    """Write a .ckpt that gemma_pytorch and torch.load(weights_only=True) read, and tokenizer.model beside it.

    >>> write_torch(Checkpoint(config=PRESETS["gemma-2b"], tensors={}, vocabulary=None), Path("a.ckpt"), "float32")
    Traceback (most recent call last):
    gemmary.base.errors.CheckpointError: expected the weight embedding, got 0 others: ...
    """
    entries, kind = unbind(checkpoint.config, checkpoint.tensors, _name), np.dtype(dtype)
    if not checkpoint.config.norm_plus_one:
        raise InputError("expected norm_plus_one, got False: gemma_pytorch has no such Gemma; write another format")
    values = {**asdict(checkpoint.config), "window_pattern": list(checkpoint.config.window_pattern)}
    with written_whole(path) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", b"".join(_pickled(entries, kind, values)))
        archive.writestr("model/byteorder", "little")
        for at, (name, entry) in enumerate(entries.items()):
            info = zipfile.ZipInfo(f"model/data/{at}")
            info.file_size = num_bytes(entry.shape, kind)
            with archive.open(info, "w") as member:
                member.write(cast(entry.read(), kind, name).view(np.uint8).data)
        archive.writestr("model/version", "3\n")
    if checkpoint.vocabulary is not None:
        write_sentencepiece(checkpoint.vocabulary, path.with_name("tokenizer.model"))


def _pickled(entries: Mapping[str, Entry], dtype: np.dtype[Any], config: Mapping[str, Any]) -> Iterator[bytes]:
    """The program that torch.save would write, opcode by opcode (protocol 2)."""
    yield b"\x80\x02}(" + _value(_STATE) + b"ccollections\nOrderedDict\n)R("
    for at, (name, entry) in enumerate(entries.items()):
        strides = tuple(num_bytes(entry.shape[axis + 1 :], np.dtype("u1")) for axis in range(len(entry.shape)))
        storage = _value("storage") + f"ctorch\n{_NAMES[dtype]}\n".encode() + _value(str(at)) + _value("cpu")
        count = _value(num_bytes(entry.shape, np.dtype("u1")))
        yield _value(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + count + b"tQ"
        yield _value(0) + _value(entry.shape) + _value(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    yield b"u" + _value(_CONFIG) + _value(dict(config)) + b"u."


def _value(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case str():
            return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + len(raw).to_bytes(1, "little") + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case tuple():
            return b"(" + b"".join(map(_value, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_value, value)) + b"e"
        case _:
            return b"}(" + b"".join(_value(key) + _value(each) for key, each in value.items()) + b"u"
