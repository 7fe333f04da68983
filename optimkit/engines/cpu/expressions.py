"""Expressions of kernel texts become instructions; `lower` does the statements around them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from optimkit.engines.cpu.assembly import Assembly
from optimkit.engines.cpu.language import BOOL, BUILTIN, INT64, Function, NotInLanguage, Value, is_float, literal

# LLVM's names for whole numbers, and for floats; "" where there is none
_ARITHMETIC = {
    ast.Add: ("add", "fadd"),
    ast.Sub: ("sub", "fsub"),
    ast.Mult: ("mul", "fmul"),
    ast.Div: ("", "fdiv"),
    ast.FloorDiv: ("udiv", ""),
    ast.Mod: ("urem", ""),
    ast.BitAnd: ("and", ""),
    ast.BitOr: ("or", ""),
    ast.RShift: ("ashr", ""),
}
_COMPARISONS = {
    ast.Eq: ("eq", "oeq"),
    ast.NotEq: ("ne", "une"),
    ast.Lt: ("slt", "olt"),
    ast.LtE: ("sle", "ole"),
    ast.Gt: ("sgt", "ogt"),
    ast.GtE: ("sge", "oge"),
}


class Names:
    """What the functions of a text may name: functions of the language and constants, and each other.

    `kinds` are the kinds of the arguments of each function of the text, and of what it gives back.
    """

    def __init__(self) -> None:
        self.names: dict[str, Function | Value] = {**BUILTIN}
        self.kinds: dict[str, tuple[list[str], str | None]] = {}


class Expressions:
    """The values of expressions in one function of a text."""

    def __init__(self, module: Names, code: Assembly) -> None:
        self.module, self.code = module, code

    def value(self, node: ast.expr) -> Value:
        """The value of an expression."""
        found: Value = entry_of(_EXPRESSIONS, node)(self, node)
        return found

    def constant(self, node: ast.Constant) -> Value:
        if not isinstance(node.value, bool | int | float):
            raise NotInLanguage(f"{node.value!r} is no number")
        return literal(node.value)

    def variable(self, node: ast.Name) -> Value:
        return self.named(node.id)

    def named(self, name: str) -> Value:
        """A variable, or a constant of the module."""
        found = self.code.read(name) or self.module.names.get(name)
        if not isinstance(found, Value):
            raise NotInLanguage(f"{name} has no value here")
        return found

    def operation(self, node: ast.BinOp) -> Value:
        return self.combined(node.op, self.value(node.left), self.value(node.right))

    def combined(self, operator: ast.operator, a: Value, b: Value) -> Value:
        a, b = self.code.alike(a, b)
        if a.kind == BOOL and not isinstance(operator, ast.BitAnd | ast.BitOr):
            a, b = self.code.convert(a, INT64), self.code.convert(b, INT64)
        name = entry_of(_ARITHMETIC, operator)[is_float(a.kind)]
        if not name:
            raise NotInLanguage(f"{type(operator).__name__} is not for values of kind {a.kind}")
        return self.code.emit(a.kind, f"{name} {a.kind} {a.text}, {b.text}")

    def unary(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return self.code.emit(BOOL, f"xor i1 {self.truth(node.operand).text}, true")
        value = self.value(node.operand)
        if not isinstance(node.op, ast.USub) or value.kind == BOOL:
            raise NotInLanguage(f"{type(node.op).__name__} is not for values of kind {value.kind}")
        if is_float(value.kind):
            return self.code.emit(value.kind, f"fneg {value.kind} {value.text}")
        return self.code.emit(INT64, f"sub i64 0, {value.text}")

    def comparison(self, node: ast.Compare) -> Value:
        if len(node.ops) > 1:
            raise NotInLanguage("two values are compared at a time")
        a, b = self.code.alike(self.value(node.left), self.value(node.comparators[0]))
        if a.kind == BOOL:  # of which true, as a signed number, were the smaller one
            a, b = self.code.convert(a, INT64), self.code.convert(b, INT64)
        name = entry_of(_COMPARISONS, node.ops[0])[is_float(a.kind)]
        return self.code.emit(BOOL, f"{'fcmp' if is_float(a.kind) else 'icmp'} {name} {a.kind} {a.text}, {b.text}")

    def truth(self, node: ast.expr) -> Value:
        """Whether an expression is true, or not 0."""
        value = self.value(node)
        if value.kind == BOOL:
            return value
        if is_float(value.kind):
            raise NotInLanguage("a float is compared, it is not true or false")
        return self.code.emit(BOOL, f"icmp ne i64 {value.text}, 0")

    def branch(self, node: ast.expr, yes: str, no: str) -> None:
        self.code.leave(f"br i1 {self.truth(node).text}, label %{yes}, label %{no}")

    def junction(self, node: ast.BoolOp) -> Value:
        """`a and b`, `a or b`: the rest is looked at only where it matters."""
        code, slot, end = self.code, self.code.slot(BOOL), self.code.label("known")
        for place, each in enumerate(node.values):
            value = self.truth(each)
            code.put(slot, value)
            if place < len(node.values) - 1:
                other = code.label("other")
                ways = (other, end) if isinstance(node.op, ast.And) else (end, other)
                code.leave(f"br i1 {value.text}, label %{ways[0]}, label %{ways[1]}")
                code.begin(other)
        code.begin(end)
        return code.get(slot)

    def choice(self, node: ast.IfExp) -> Value:
        """Both values are computed, which costs less than a branch and lets loops be vectorized."""
        asked = self.truth(node.test)
        a, b = self.code.alike(self.value(node.body), self.value(node.orelse))
        return self.code.emit(a.kind, f"select i1 {asked.text}, {a.kind} {a.text}, {b.kind} {b.text}")

    def result(self, node: ast.Call) -> Value:
        found = self.call(node)
        if found is None:
            raise NotInLanguage(f"{ast.unparse(node.func)} gives nothing back")
        return found

    def call(self, node: ast.Call) -> Value | None:
        """A function of the language, or of the text."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        given = [self.value(each) for each in node.args]
        function, known = self.module.names.get(name), self.module.kinds.get(name)
        own = None if isinstance(function, Function) else known
        wanted = function.arguments if isinstance(function, Function) else len(own[0]) if own else -1
        if node.keywords or wanted not in (None, len(given)):
            raise NotInLanguage(f"there is no function {ast.unparse(node.func)} of {len(given)} arguments")
        if isinstance(function, Function):
            return function.emit(self.code, given)
        assert own is not None
        values = [self.code.convert(value, kind) for value, kind in zip(given, own[0], strict=True)]
        text = f"@{name}({', '.join(f'{value.kind} {value.text}' for value in values)})"
        if own[1] is not None:
            return self.code.emit(own[1], f"call {own[1]} {text}")
        self.code.do(f"call void {text}")
        return None


def entry_of(table: dict[Any, Any], node: ast.AST) -> Any:
    """What a table has for a construct."""
    if type(node) not in table:
        raise NotInLanguage(f"{type(node).__name__} is not in the language")
    return table[type(node)]


_EXPRESSIONS: dict[type, Callable[[Expressions, Any], Value]] = {
    ast.Constant: Expressions.constant,
    ast.Name: Expressions.variable,
    ast.BinOp: Expressions.operation,
    ast.UnaryOp: Expressions.unary,
    ast.Compare: Expressions.comparison,
    ast.BoolOp: Expressions.junction,
    ast.IfExp: Expressions.choice,
    ast.Call: Expressions.result,
}
