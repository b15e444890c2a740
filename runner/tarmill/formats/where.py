"""The filter of `htextract --where`: a small expression over columns. It is parsed by hand and never evaluated as code.

    expr     = conj *( "or" conj )
    conj     = neg *( "and" neg )
    neg      = "not" neg / test
    test     = "(" expr ")" / operand [ compare operand / [ "not" ] "in" list / "~" string / "contains" literal ]
    compare  = "==" / "!=" / "<" / "<=" / ">" / ">="
    operand  = column / literal                          a column as in `-f`; odd names in `backticks`
    list     = "(" literal *( "," literal ) ")"
    literal  = 'text' / "text" / number / "true" / "false" / "null"        in texts: \\\\  \\'  \\"  \\n  \\t  \\r

The rules, two-valued throughout:
- A missing value is null. An operand alone holds unless it is null or false, so `jpg` means: has a field jpg.
- `==` and `!=` compare any two values; values of different types differ. Ordering and null: never holds.
- `<` and its kin order numbers, or texts by code point. Text against number is an error: at once where the types are
  known beforehand (`cls < 3`: cls is text, write `cls:int < 3`), else a bad sample ("unparsable").
- `~` finds a regular expression (Python's) anywhere in a text; `contains` finds a text in a text, or an item in a
  JSON list. Neither holds on null.
- `and`, `or` stop at the first operand that decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tarmill.errors import UsageError
from tarmill.formats.column_values import Documents, unparsable
from tarmill.formats.columns import Column, Getter, parse_column, pointed
from tarmill.formats.samples import Record
from tarmill.values import valueclass

MAX_DEPTH = 50
MAX_LENGTH = 10_000
EXAMPLE = "--where 'meta.json:score:float > 0.5 and cls:int in (3, 5)'"

_TOKEN = re.compile(
    r"""\s*(?: (?P<text>'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
      | (?P<sign>==|!=|<=|>=|[<>()~,])
      | (?P<word>(?:[^\s()<>=!~,'"`]|`(?:[^`]|``)*`)+)
      | (?P<end>$) | (?P<bad>.) )""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}
_KEYWORDS = frozenset({"and", "or", "not", "in", "contains", *_CONSTANTS})
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_KINDS = {"binary": "text", "text": "text", "int": "number", "float": "number"}
_TYPES = {bool: "bool", int: "number", float: "number", str: "text", list: "list", dict: "object"}

Test = Callable[[Record], bool]


@valueclass
class Where:
    """A parsed filter: what it needs from the reader, and the function record -> bool."""

    text: str
    needs: frozenset[str]
    """Fields whose contents are needed."""
    needs_sizes: bool
    """Whether fields must be known that are not loaded."""

    @classmethod
    def parse(cls, text: str) -> Where:
        """Check a filter. Raises UsageError with a mark under the place that cannot be read, and an example."""
        parser = _Parser(text, Documents())
        parser.parse()
        return cls(text, frozenset(parser.needs), parser.needs_sizes)

    def compile(self, documents: Documents | None = None) -> Test:
        """Make the function record -> bool; columns share what `documents` has parsed.

        The function raises SampleError (reason "unparsable") where a column does, or when a text is ordered against
        a number.
        """
        return _Parser(self.text, documents or Documents()).parse()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Operand(NamedTuple):
    """A column or a literal: how to get its value, and its type where that is known beforehand."""

    get: Getter
    type: str | None
    token: _Token
    column: Column | None
    value: Any = None


class _Parser:
    """Precedence climbing over the tokens, straight to closures."""

    def __init__(self, text: str, documents: Documents) -> None:
        if len(text) > MAX_LENGTH:
            raise UsageError(f"--where has {len(text)} characters; at most {MAX_LENGTH} are read")
        self._text = text
        self._documents = documents
        self._tokens = [_Token(m.lastgroup or "", m[m.lastgroup or 0], m.start(m.lastgroup or 0)) for m in _scan(text)]
        self._next = 0
        self._depth = 0
        self.needs: set[str] = set()
        self.needs_sizes = False

    def parse(self) -> Test:
        test = self._any()
        if self._peek.kind != "end":
            raise self._error("expected 'and', 'or' or the end")
        return test

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._peek
        self._next += token.kind != "end"
        return token

    def _accept(self, *texts: str) -> str | None:
        token = self._peek
        if token.kind in ("sign", "word") and token.text in texts:
            self._next += 1
            return token.text
        return None

    def _error(self, message: str, token: _Token | None = None) -> UsageError:
        token = token or self._peek
        if token.kind == "bad" and token.text in "'\"`":
            message = f"this {token.text} has no partner"
        elif token.text == "=":
            message = "expected == to compare"
        else:
            message = f"{message}, found {token.text[:40] or 'the end'}"
        return pointed(self._text, token.at, f"--where: {message}", EXAMPLE)

    def _any(self) -> Test:
        tests = [self._all()]
        while self._accept("or"):
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else _either(tests)

    def _all(self) -> Test:
        tests = [self._not()]
        while self._accept("and"):
            tests.append(self._not())
        return tests[0] if len(tests) == 1 else _both(tests)

    def _not(self) -> Test:
        token = self._peek
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} levels of parentheses and 'not'", token)
        if self._accept("not"):
            test = _negated(self._not())
        elif self._accept("("):
            test = self._any()
            if not self._accept(")"):
                raise self._error("expected ')'")
        else:
            test = self._test()
        self._depth -= 1
        return test

    def _test(self) -> Test:
        left = self._operand()
        token = self._peek
        sign = self._accept("==", "!=", "<", "<=", ">", ">=", "in", "not", "~", "contains")
        if sign is None:
            return _holds(self._presence(left).get)
        if sign == "not" and not self._accept("in"):
            raise self._error("expected 'in' after 'not'")
        if sign in ("in", "not"):
            test = self._membership(self._used(left))
            return _negated(test) if sign == "not" else test
        if sign == "~":
            return self._regex(self._used(left))
        right = self._operand()
        if sign == "contains":
            if right.column is not None or right.value is None:
                raise self._error("expected a text in quotes or a number after 'contains'", right.token)
            self._check_types("contains", left, right)
            return _containing(self._used(left).get, right.value)
        if sign in ("==", "!="):
            test = self._equality(left, right)
            return test if sign == "==" else _negated(test)
        return self._ordering(token, left, right)

    def _operand(self) -> _Operand:
        token = self._take()
        if token.kind == "word" and token.text not in _KEYWORDS and not _NUMBER.fullmatch(token.text):
            column = parse_column(token.text, self._text, token.at)
            return _Operand(_plain(column, self._documents), _KINDS.get(column.kind), token, column)
        value = self._literal(token, "a column, a text in quotes, a number, true, false or null")
        return _Operand(lambda record: value, _TYPES.get(type(value), "null"), token, None, value)

    def _literal(self, token: _Token, expected: str) -> Any:
        if token.kind == "text":
            return _ESCAPE.sub(lambda m: _ESCAPES.get(m[1], m[0]), token.text[1:-1])
        if token.kind == "word" and token.text in _CONSTANTS:
            return _CONSTANTS[token.text]
        if token.kind == "word" and _NUMBER.fullmatch(token.text):
            return int(token.text) if token.text.lstrip("+-").isdigit() else float(token.text)
        raise self._error(f"expected {expected}", token)

    def _used(self, operand: _Operand) -> _Operand:
        """Note what a column needs, now that its value is asked for."""
        if operand.column is not None:
            self.needs |= operand.column.needs
            self.needs_sizes |= operand.column.needs_sizes
        return operand

    def _presence(self, operand: _Operand) -> _Operand:
        """Take an operand of which only null or not matters: a plain field need not be loaded for that."""
        if operand.column is None or operand.column.kind != "binary":
            return self._used(operand)
        self.needs_sizes = True
        return operand._replace(get=operand.column.compile(self._documents))

    def _check_types(self, sign: str, left: _Operand, right: _Operand) -> None:
        """Refuse what could never hold, when the types are known before any sample is read."""
        types = {left.type, right.type}
        if not types <= {"text", "number", "bool"} or len(types) == 1:
            return
        hint = ""
        for operand in (left, right):
            if operand.column is not None and operand.column.kind == "binary" and "number" in types:
                hint = f"; write {operand.column.text}:int or {operand.column.text}:float"
        raise self._error(
            f"{sign} cannot compare {left.token.text}, a {left.type}, with {right.token.text}, a {right.type}{hint};"
            " expected two of one type",
            right.token,
        )

    def _equality(self, left: _Operand, right: _Operand) -> Test:
        for this, other in ((left, right), (right, left)):
            if this.column is None and this.value is None:
                return _is_null(self._presence(other).get)
        self._check_types("==", left, right)
        return _equal(self._used(left).get, self._used(right).get)

    def _ordering(self, sign: _Token, left: _Operand, right: _Operand) -> Test:
        for operand in (left, right):
            if operand.type in ("bool", "null"):
                raise self._error(f"{sign.text} orders numbers or texts; expected one", operand.token)
        self._check_types(sign.text, left, right)
        name = f"{left.token.text} {sign.text} {right.token.text}"
        return _ordered(_ORDERS[sign.text], self._used(left).get, self._used(right).get, name)

    def _membership(self, left: _Operand) -> Test:
        if not self._accept("("):
            raise self._error("expected '(' and a list of values after 'in'")
        values = []
        while True:
            token = self._take()
            value = self._literal(token, "a text in quotes or a number")
            self._check_types("in", left, _Operand(left.get, _TYPES.get(type(value), "null"), token, None, value))
            values.append(value)
            if self._accept(")"):
                return _among(left.get, values)
            if not self._accept(","):
                raise self._error("expected ',' or ')'")

    def _regex(self, left: _Operand) -> Test:
        token = self._take()
        if token.kind != "text":
            raise self._error("expected a regular expression in quotes after '~'", token)
        try:
            pattern = re.compile(re.sub(r"\\(['\"])", r"\1", token.text[1:-1]))
        except (re.error, RecursionError, OverflowError) as error:
            raise self._error(f"this is no regular expression ({error}); expected one", token) from None
        if left.type == "number":
            raise self._error(f"'~' looks into texts and {left.token.text} is a number; expected a text", left.token)
        return _matching(left.get, pattern, f"{left.token.text} ~ {token.text}")


def _scan(text: str) -> list[re.Match[str]]:
    matches = []
    for match in _TOKEN.finditer(text):
        matches.append(match)
        if match.lastgroup == "end":
            break
    return matches


def _plain(column: Column, documents: Documents) -> Getter:
    """Compile a column; contents become text, as rows show them."""
    get = column.compile(documents)
    if column.kind != "binary":
        return get
    return lambda record: None if (raw := get(record)) is None else raw.decode("utf-8", "backslashreplace")


def _either(tests: list[Test]) -> Test:
    return lambda record: any(test(record) for test in tests)


def _both(tests: list[Test]) -> Test:
    if len(tests) == 2:
        first, second = tests
        return lambda record: first(record) and second(record)
    return lambda record: all(test(record) for test in tests)


def _negated(test: Test) -> Test:
    return lambda record: not test(record)


def _holds(get: Getter) -> Test:
    return lambda record: (value := get(record)) is not None and value is not False


def _is_null(get: Getter) -> Test:
    return lambda record: get(record) is None


def _same(a: Any, b: Any) -> bool:
    """Compare as JSON does: true is not 1, for Python it is."""
    return bool(a == b) and (type(a) is bool) == (type(b) is bool)


def _equal(left: Getter, right: Getter) -> Test:
    return lambda record: _same(left(record), right(record))


def _ordered(order: Callable[[Any, Any], bool], left: Getter, right: Getter, name: str) -> Test:
    def test(record: Record) -> bool:
        a, b = left(record), right(record)
        if a is None or b is None:
            return False
        kinds = _TYPES.get(type(a)), _TYPES.get(type(b))
        if kinds not in (("number", "number"), ("text", "text")):
            why = f"{name} orders {kinds[0]} against {kinds[1]}; convert with :float, or test the type first"
            raise unparsable("of --where", record, why)
        return order(a, b)

    return test


def _among(get: Getter, values: list[Any]) -> Test:
    chosen = frozenset((type(value) is bool, value) for value in values)

    def test(record: Record) -> bool:
        value = get(record)
        return type(value) not in (list, dict) and (type(value) is bool, value) in chosen

    return test


def _containing(get: Getter, wanted: Any) -> Test:
    def test(record: Record) -> bool:
        value = get(record)
        if type(value) is str:
            return type(wanted) is str and wanted in value
        return isinstance(value, list) and any(_same(item, wanted) for item in value)

    return test


def _matching(get: Getter, pattern: re.Pattern[str], name: str) -> Test:
    search = pattern.search

    def test(record: Record) -> bool:
        value = get(record)
        if value is None:
            return False
        if type(value) is not str:
            raise unparsable("of --where", record, f"{name} looks into a text and this is {_TYPES.get(type(value))}")
        return search(value) is not None

    return test
