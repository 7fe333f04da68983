"""A function in LLVM's language, as it is written: instructions, blocks, variables.

Variables live in memory slots of the function, which LLVM turns into registers; a variable has the kind of what it is
first given.
"""

from __future__ import annotations

from optimkit.engines.cpu.language import BOOL, FLOAT32, FLOAT64, INT64, WIDENING, NotInLanguage, Value, is_float


class Assembly:
    """A function that gives back a value of a kind, or nothing; `declarations` are shared by the functions of a module."""

    def __init__(
        self, name: str, arguments: list[str], gives: str | None, internal: bool, declarations: dict[str, None]
    ) -> None:
        self.declarations, self.gives = declarations, gives
        before, after = ("internal ", " alwaysinline") if internal else ("", "")
        self._head = f"define {before}{gives or 'void'} @{name}({', '.join(arguments)}){after} nounwind {{"
        self._slots: dict[str, Value] = {}
        self._entry: list[str] = []
        self._lines: list[str] = []
        self._registers = self._labels = 0
        self.open = True  # the block that is written has no end yet

    def text(self) -> str:
        return "\n".join([self._head, "entry:", *self._entry, "  br label %body", "body:", *self._lines, "}"])

    # ---- instructions

    def emit(self, kind: str, instruction: str) -> Value:
        """An instruction with a result."""
        self._registers += 1
        self._lines.append(f"  %r{self._registers} = {instruction}")
        return Value(kind, f"%r{self._registers}")

    def do(self, instruction: str) -> None:
        """An instruction without one."""
        self._lines.append("  " + instruction)

    def declare(self, declaration: str) -> None:
        """Name a function that is defined elsewhere."""
        self.declarations[declaration] = None

    def convert(self, value: Value, kind: str, always: bool = False) -> Value:
        """A value as one of another kind; narrowing has to be asked for."""
        if value.kind == kind:
            return value
        if not always and WIDENING.index(kind) < WIDENING.index(value.kind):
            raise NotInLanguage(f"a value of kind {value.kind} does not become {kind} unasked")
        if is_float(kind):
            how = {BOOL: "uitofp", INT64: "sitofp", FLOAT32: "fpext", FLOAT64: "fptrunc"}[value.kind]
        else:
            how = "zext" if value.kind == BOOL else "fptosi"
        return self.emit(kind, f"{how} {value.kind} {value.text} to {kind}")

    def alike(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Two values in the wider kind of the two."""
        kind = max(a.kind, b.kind, key=WIDENING.index)
        return self.convert(a, kind), self.convert(b, kind)

    # ---- blocks

    def label(self, name: str) -> str:
        """A new name for a block."""
        self._labels += 1
        return f"{name}{self._labels}"

    def begin(self, label: str) -> None:
        """A block begins; what was written before goes on there, unless it ended otherwise."""
        self.leave(f"br label %{label}")
        self._lines.append(f"{label}:")
        self.open = True

    def leave(self, instruction: str) -> None:
        """The block ends with this, unless it has ended."""
        if self.open:
            self.do(instruction)
        self.open = False

    # ---- variables

    def slot(self, kind: str) -> Value:
        """Memory for a variable of a kind."""
        slot = Value(kind, f"%v{len(self._entry)}")
        self._entry.append(f"  {slot.text} = alloca {kind}")
        return slot

    def put(self, slot: Value, value: Value) -> None:
        self.do(f"store {value.kind} {value.text}, ptr {slot.text}")

    def get(self, slot: Value) -> Value:
        return self.emit(slot.kind, f"load {slot.kind}, ptr {slot.text}")

    def assign(self, name: str, value: Value) -> None:
        """A variable gets a value."""
        slot = self._slots.get(name) or self._slots.setdefault(name, self.slot(value.kind))
        if slot.kind != value.kind:
            raise NotInLanguage(f"{name} is of kind {slot.kind}, and is given a value of kind {value.kind}")
        self.put(slot, value)

    def read(self, name: str) -> Value | None:
        """The value of a variable; None where there is none of the name."""
        slot = self._slots.get(name)
        return None if slot is None else self.get(slot)
