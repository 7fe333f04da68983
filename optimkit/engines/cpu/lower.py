"""Kernel texts become LLVM's language: Python's own `ast`, one method a construct.

`language` says what the texts may call. Float operations carry no flags: LLVM reassociates and contracts nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from optimkit.engines.cpu import language
from optimkit.engines.cpu.assembly import Assembly
from optimkit.engines.cpu.expressions import Expressions, Names, entry_of
from optimkit.engines.cpu.language import BOOL, INT64, KINDS, NotInLanguage, Value, literal

KERNEL = "kernel"  # the function that is called from outside


def lower(text: str) -> str:
    """The module of a kernel text, in LLVM's language.

    Raises
    ------
    NotInLanguage
        If it is no text of a kernel; the message names the line.
    """
    module = _Module()
    try:
        for node in ast.parse(text).body:
            module.take(node)
        for function in module.defined:
            module.define(function)
        return module.text()
    except NotInLanguage as error:
        number = getattr(module.at, "lineno", 1)
        line = [*text.splitlines(), ""][number - 1].strip()
        raise NotInLanguage(f"{error}, in line {number}: {line}") from None


class _Module(Names):
    """A text: its functions, and the names that they know."""

    def __init__(self) -> None:
        super().__init__()
        self.defined: list[ast.FunctionDef] = []
        self.functions: list[Assembly] = []
        self.declarations: dict[str, None] = {}
        self.at: ast.AST | None = None

    def take(self, node: ast.stmt) -> None:
        """An import, constants, or a function."""
        self.at = node
        if isinstance(node, ast.ImportFrom) and node.module == language.__name__:
            for alias in node.names:
                self.names[alias.asname or alias.name] = language.named(alias.name)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for name, value in zip(_names(target, node.value), _parts(node.value), strict=True):
                    if not isinstance(value, ast.Constant) or type(value.value) is not int:
                        raise NotInLanguage(f"{name} stands for a whole number, or nothing")
                    self.names[name] = literal(value.value)
        elif isinstance(node, ast.FunctionDef):
            _check_head(node)
            gives = _kind_of(node.returns) if node.returns is not None else None
            self.kinds[node.name] = [_kind_of(argument.annotation) for argument in node.args.args], gives
            self.defined.append(node)
        else:
            raise NotInLanguage(f"{type(node).__name__} does not stand outside of functions")

    def define(self, node: ast.FunctionDef) -> None:
        """Write a function, when all are known that it may call."""
        self.at = node
        kinds, gives = self.kinds[node.name]
        if node.name in self.names or [each.name for each in self.defined].count(node.name) > 1:
            raise NotInLanguage(f"{node.name} stands for two things")
        if node.name == KERNEL and {*kinds, gives} - {INT64, None}:
            raise NotInLanguage("a kernel takes words, and gives back a word or nothing")
        arguments = [f"{kind} %a{place}" for place, kind in enumerate(kinds)]
        code = Assembly(node.name, arguments, gives, node.name != KERNEL, self.declarations)
        self.functions.append(code)
        _Lowering(self, code).function(node, kinds)

    def text(self) -> str:
        if KERNEL not in self.kinds:
            raise NotInLanguage(f"there is no function {KERNEL}")
        return "\n".join([*self.declarations, *(code.text() for code in self.functions)])


def _kind_of(annotation: ast.expr | None) -> str:
    """A word, unless an annotation says otherwise."""
    if annotation is None:
        return INT64
    if not isinstance(annotation, ast.Name) or annotation.id not in KINDS:
        raise NotInLanguage(f"{ast.unparse(annotation)} is none of the kinds {', '.join(KINDS)}")
    return KINDS[annotation.id]


def _check_head(node: ast.FunctionDef) -> None:
    """Raise NotInLanguage where a function has more than plain arguments."""
    head, names = node.args, [argument.arg for argument in node.args.args]
    more = [*head.posonlyargs, *head.kwonlyargs, *head.defaults, head.vararg, head.kwarg, *node.decorator_list]
    if any(each is not None for each in (*more, *getattr(node, "type_params", ()))) or len({*names}) < len(names):
        raise NotInLanguage(f"{node.name} has more than arguments with names of their own: no defaults, stars or decorators")


def _parts(given: ast.expr) -> list[ast.expr]:
    """The values of an assignment: one, or as many as a tuple has."""
    return given.elts if isinstance(given, ast.Tuple) else [given]


def _names(target: ast.expr, given: ast.expr) -> list[str]:
    """The names of an assignment, one for each of its values."""
    names = [each.id for each in _parts(target) if isinstance(each, ast.Name)]
    alike = isinstance(target, ast.Tuple) == isinstance(given, ast.Tuple)
    if not alike or not len(names) == len(_parts(target)) == len(_parts(given)):
        raise NotInLanguage("names are assigned to, with as many values")
    return names


def _step(node: ast.expr) -> int:
    """The step of a range, which tells the direction of the loop."""
    down = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    size = node.operand if isinstance(node, ast.UnaryOp) and down else node
    if not isinstance(size, ast.Constant) or type(size.value) is not int or not size.value:
        raise NotInLanguage("the step of a range is written as a number, and is not 0")
    return -size.value if down else size.value


class _Lowering(Expressions):
    """One function of a module."""

    module: _Module

    def __init__(self, module: _Module, code: Assembly) -> None:
        super().__init__(module, code)
        self.loops: list[tuple[str, str]] = []

    def function(self, node: ast.FunctionDef, kinds: Sequence[str]) -> None:
        for place, (argument, kind) in enumerate(zip(node.args.args, kinds, strict=True)):
            self.assign(argument.arg, Value(kind, f"%a{place}"))
        self.block(node.body)
        if self.code.open and self.code.gives:
            raise NotInLanguage(f"{node.name} ends without a value")
        self.code.leave("ret void")

    def block(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self.module.at = statement
            if not self.code.open:
                raise NotInLanguage("this is never reached")
            entry_of(_STATEMENTS, statement)(self, statement)

    # ---- statements

    def assignment(self, node: ast.Assign) -> None:
        values = [self.value(given) for given in _parts(node.value)]
        for target in node.targets:  # a = b = 0
            for name, value in zip(_names(target, node.value), values, strict=True):
                self.assign(name, value)

    def augmented(self, node: ast.AugAssign) -> None:
        (name,) = _names(node.target, node.value)
        self.assign(name, self.combined(node.op, self.named(name), self.value(node.value)))

    def assign(self, name: str, value: Value) -> None:
        """A variable gets a value; what the text has under another meaning is none."""
        if name in self.module.names or name in self.module.kinds:
            raise NotInLanguage(f"{name} stands for something else in this text")
        self.code.assign(name, value)

    def alone(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Call):
            raise NotInLanguage("only a call stands by itself")
        self.call(node.value)

    def if_(self, node: ast.If) -> None:
        yes, no, end = (self.code.label(name) for name in ("then", "else", "end"))
        self.branch(node.test, yes, no if node.orelse else end)
        for label, body in ((yes, node.body), (no, node.orelse)):
            if body:
                self.code.begin(label)
                self.block(body)
                self.code.leave(f"br label %{end}")
        self.code.begin(end)

    def while_(self, node: ast.While) -> None:
        if node.orelse:
            raise NotInLanguage("a loop has no else")
        head, body, end = (self.code.label(name) for name in ("while", "do", "done"))
        self.code.begin(head)
        self.branch(node.test, body, end)
        self.code.begin(body)
        self.loop(head, end, node.body)
        self.code.leave(f"br label %{head}")
        self.code.begin(end)

    def for_(self, node: ast.For) -> None:
        """Over a range, whose step is a constant; what is done to the variable inside changes nothing."""
        call = node.iter
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "range":
            raise NotInLanguage("a loop goes over a range")
        if node.orelse or call.keywords or not 1 <= len(call.args) <= 3:
            raise NotInLanguage("a range has one to three numbers, and a loop no else")
        (name,) = _names(node.target, call)
        step = _step(call.args[2]) if len(call.args) == 3 else 1
        given = [self.code.convert(self.value(each), INT64) for each in call.args[:2]]
        first, last = given if len(given) == 2 else (literal(0), *given)
        code, counter = self.code, self.code.slot(INT64)
        code.put(counter, first)
        head, body, following, end = (code.label(name) for name in ("for", "do", "next", "done"))
        code.begin(head)
        place = code.get(counter)
        inside = code.emit(BOOL, f"icmp {'slt' if step > 0 else 'sgt'} i64 {place.text}, {last.text}")
        code.leave(f"br i1 {inside.text}, label %{body}, label %{end}")
        code.begin(body)
        self.assign(name, place)
        self.loop(following, end, node.body)
        code.begin(following)
        code.put(counter, code.emit(INT64, f"add nsw i64 {code.get(counter).text}, {step}"))
        code.leave(f"br label %{head}")
        code.begin(end)

    def loop(self, again: str, end: str, body: Sequence[ast.stmt]) -> None:
        """The body of a loop, with the blocks that `continue` and `break` lead to."""
        self.loops.append((again, end))
        self.block(body)
        self.loops.pop()

    def return_(self, node: ast.Return) -> None:
        gives = self.code.gives
        if (node.value is None) != (gives is None):
            raise NotInLanguage("a function gives back what its head says")
        if node.value is None or gives is None:
            self.code.leave("ret void")
        else:
            self.code.leave(f"ret {gives} {self.code.convert(self.value(node.value), gives).text}")

    def turn(self, node: ast.Break | ast.Continue) -> None:
        """`break` and `continue`."""
        if not self.loops:
            raise NotInLanguage("this stands in loops only")
        again, end = self.loops[-1]
        self.code.leave(f"br label %{end if isinstance(node, ast.Break) else again}")


_STATEMENTS: dict[type, Callable[[_Lowering, Any], None]] = {
    ast.Assign: _Lowering.assignment,
    ast.AugAssign: _Lowering.augmented,
    ast.Expr: _Lowering.alone,
    ast.If: _Lowering.if_,
    ast.While: _Lowering.while_,
    ast.For: _Lowering.for_,
    ast.Return: _Lowering.return_,
    ast.Break: _Lowering.turn,
    ast.Continue: _Lowering.turn,
}
