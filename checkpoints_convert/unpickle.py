"""An unpickler that runs no code from the pickle.

It reads every opcode that CPython's pickler writes, but never imports a global: its name is kept as a
`Global`, and calling or building it gives an inert `Opaque` with the name, arguments and state, unless the
caller supplied a constructor for exactly that name. Thus nothing in a file can choose what runs.

Every opcode takes a bounded amount of time and memory, and their number is bounded, so that a file cannot
occupy the machine: containers are shared and never copied, sets become lists, and only values whose hashes a
file cannot make collide are used as keys.
"""

import pickletools
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specjax.errors import ModelError

MAX_BYTES = 32 << 20
MAX_OPCODES = 2_000_000
"""About 40 are written for a tensor."""

_MAX_KEY = 1 << 60  # larger integers may have the hash of a smaller one
_MAX_ARGUMENTS = 64
_MAX_INT_BITS = 2048
_MAX_NAME = 1000

_MARK = object()

Constructors = Mapping[str, Callable[..., Any]]
PersistentLoad = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a global that the pickle refers to; it is not imported."""

    name: str  # "module.name"


class Opaque:
    """An inert stand-in for an object of an unknown class.

    Attributes:
        name: Name of the class or function, "module.name".
        args: Arguments of the call.
        state: State set by a BUILD opcode.
        items: Items set, for a subclass of dict.
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: Any = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}>"


def unpickle(data: bytes | memoryview, constructors: Constructors, persistent: PersistentLoad) -> Any:
    """Read a pickle without running code from it.

    Args:
        data: The pickle.
        constructors: Functions to call with the arguments of a REDUCE or NEWOBJ, by "module.name".
        persistent: Function that returns the object for a persistent id.

    Raises:
        ModelError: The pickle is malformed or has opcodes that do not occur in PyTorch files.
    """
    if len(data) > MAX_BYTES:
        raise ModelError(f"its pickle has {len(data)} bytes, too many for a model")
    machine = _Machine(constructors, persistent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in text opcodes
            return machine.run(bytes(data))
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"its pickle is malformed: {reason[:200]}") from None


class _Machine:
    def __init__(self, constructors: Constructors, persistent: PersistentLoad) -> None:
        self.constructors = constructors
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                raise ValueError(f"it has more than {MAX_OPCODES:,} opcodes, too many for a model")
            if opcode.name == "STOP":
                return self.pop()
            if opcode.name in _LITERALS:
                self.push(self.literal(argument))
            else:
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise ValueError(f"opcode {opcode.name} does not occur in PyTorch files")
                step(self, argument)
        raise ValueError("there is no STOP")

    def literal(self, value: Any) -> Any:
        if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
            raise ValueError(f"an integer has more than {_MAX_INT_BITS} bits")
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("the stack is empty")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("there is no mark")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def pop_one(self, _: Any) -> None:
        # POP on a mark removes the mark.
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def drop_mark(self, _: Any) -> None:
        self.pop_mark()

    def dup(self, _: Any) -> None:
        self.push(self.top())

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else int(index)] = self.top()

    def get(self, index: int) -> None:
        self.push(self.memo[int(index)])

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque | dict):
            raise TypeError("it appends to an object that is not a list")

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise ValueError("a key has no value")
        target = self.top()
        target = target.items if isinstance(target, Opaque) else target
        if not isinstance(target, dict):
            raise TypeError("it sets an item of an object that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_as_key(key)] = value

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("the name of a global is not a string")
        if len(name) + len(module) > _MAX_NAME:
            raise ValueError("the name of a global is too long")
        self.push(Global(f"{module}.{name}"))

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(args, tuple):
            raise TypeError("arguments are not a tuple")
        if not isinstance(function, Global):
            self.push(Opaque("unknown", args))
        elif function.name in self.constructors:
            if len(args) > _MAX_ARGUMENTS:
                raise ValueError(f"{function.name} is called with {len(args)} arguments")
            self.push(self.constructors[function.name](*args))
        else:
            self.push(Opaque(function.name, args))

    def reduce(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        self.call(function, args)

    def new_object_ex(self, _: Any) -> None:
        keywords, args, function = self.pop(), self.pop(), self.pop()
        name = function.name if isinstance(function, Global) else "unknown"
        self.push(Opaque(name, (args, keywords)))

    def instance(self, names: str) -> None:
        self.call(Global(names.replace(" ", ".", 1)), tuple(self.pop_mark()))

    def obj(self, _: Any) -> None:
        function, *args = self.pop_mark()
        self.call(function, tuple(args))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Opaque):
            target.state = state  # other objects ignore it


def _as_key(key: Any) -> Any:
    """Return a key whose hash is cheap and not chosen by the file, or an `Opaque` in its place.

    Python mixes a secret into the hashes of texts only. Those of large numbers and tuples can be made equal,
    and a dictionary of n such keys takes n squared steps.
    """
    if isinstance(key, str | bytes | None | Opaque | Global):
        return key
    if isinstance(key, int | float) and abs(key) < _MAX_KEY:
        return key
    return Opaque(type(key).__name__, key)


def _pair(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _make_dict(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.push({})
    machine.set_items(items)


# Opcodes whose decoded argument is pushed.
_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)

_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop_one,
    "POP_MARK": _Machine.drop_mark,
    "DUP": _Machine.dup,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.push([])),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    **dict.fromkeys(("TUPLE", "FROZENSET"), lambda m, _: m.push(tuple(m.pop_mark()))),
    "DICT": _make_dict,
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "APPEND": lambda m, _: m.append([m.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.append(m.pop_mark())),
    "SETITEM": _pair,
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "GLOBAL": lambda m, names: m.push(Global(names.replace(" ", ".", 1))),
    "STACK_GLOBAL": _Machine.stack_global,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda m, code: m.push(Global(f"extension.{code}"))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.reduce),
    "NEWOBJ_EX": _Machine.new_object_ex,
    "INST": _Machine.instance,
    "OBJ": _Machine.obj,
    "BUILD": _Machine.build,
    "BINPERSID": lambda m, _: m.push(m.persistent(m.pop())),
}
