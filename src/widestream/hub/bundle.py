"""One modelling file out of the package's own modules, for machines where the package is not installed.

transformers finds what a modelling file imports by a regular expression, and only beside it; several files may end in
several copies of every class. So there is one. It holds what the model needs and no more: from the classes that
transformers asks for, every name that is used leads to the statement that binds it, in whatever module. Statements are
copied as they stand, comments included. Compiled kernels are replaced by plain.py, and the table of streams by the one
stream that the model has.
"""

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from widestream.errors import UserError
from widestream.recipe.kinds import OWN_KINDS
from widestream.version import __version__

PACKAGE = Path(__file__).resolve().parent.parent
ROOTS = ("WidestreamConfig", "WidestreamModel", "WidestreamForCausalLM")
"""What the file is for."""
_KERNELS = {
    "kernels.gelu_cpu": ("gelu",),
    "kernels.gate_cpu": ("gate",),
    "kernels.norm_cpu": ("rms_norm", "norm_rotate", "one_pass"),
    "kernels.attention_cpu": ("attention", "suits"),
    "kernels.grouped": ("grouped_linear",),
}
_REGISTRY = "registry"
REPLACED = {
    ("streams", "stream_class"): (_REGISTRY, "stream_class"),
    ("recipe.kinds", "settings_class"): (_REGISTRY, "settings_class"),
    **{(module, name): ("hub.plain", name) for module, names in _KERNELS.items() for name in names},
}
"""Names that come from elsewhere in a file of its own."""
_HEAD = f'"""A model of widestream {__version__} for transformers. Generated from that package; do not edit."""'


class BundleError(Exception):
    """The package's sources are not of a form that can be bundled: a fault of ours."""


@dataclass
class Statement:
    """One statement of a module."""

    text: str
    binds: set[str]
    uses: set[str]
    closed: bool = True
    """Whether it imports nothing of the package inside of a function."""


@dataclass
class Source:
    """A module taken apart."""

    statements: list[Statement] = field(default_factory=list)
    inside: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Names imported from this package: module and name there."""
    outside: dict[str, str] = field(default_factory=dict)
    """Names imported from elsewhere: the import."""

    def binding(self, name: str) -> Statement | None:
        """The statement that binds a name."""
        return next((statement for statement in self.statements if name in statement.binds), None)


def modeling_file(kind: str) -> str:
    """The text of a modelling file for models with one kind of stream.

    Args:
        kind: of the stream, one of this package.

    Raises:
        UserError: a stream of the user's own.
    """
    if kind not in OWN_KINDS:
        raise UserError(
            f"The stream {kind} is not one of this package, so its code cannot be put into the folder; "
            f"one of {', '.join(OWN_KINDS)} can."
        )
    return _Bundle(kind).text()


class _Bundle:
    """Follows names from module to module, and keeps the statements that bind them."""

    def __init__(self, kind: str):
        self.registry = _registry(kind)
        self.wanted: dict[str, set[int]] = {}
        """By module: the numbers of the statements that are needed."""
        self.order: list[str] = []
        """Modules, each behind those that it imports."""
        self.imports: set[str] = set()
        for root in ROOTS:
            self._want("hub.modeling" if root != "WidestreamConfig" else "hub.configuration", root)

    def _source(self, module: str) -> Source:
        return self.registry if module == _REGISTRY else _read(module)

    def _find(self, module: str, name: str) -> tuple[str, Statement | str | None]:
        """Where a name that `module` uses is bound: the module there, and the statement, or an import from elsewhere.

        None: nowhere; it is a builtin, or local.
        """
        while True:
            module, name = REPLACED.get((module, name), (module, name))
            source = self._source(module)
            statement = source.binding(name)
            if statement is not None or name not in source.inside:
                return module, statement or source.outside.get(name)
            module, name = source.inside[name]

    def _want(self, module: str, name: str) -> None:
        """Follow a name that `module` uses at its top level."""
        module, found = self._find(module, name)
        if isinstance(found, str):
            self.imports.add(found)
        if not isinstance(found, Statement):
            return
        number, taken = self._source(module).statements.index(found), self.wanted.setdefault(module, set())
        if number in taken:
            return
        if not found.closed:
            raise BundleError(f"{name} in {module} imports something of the package inside of a function.")
        taken.add(number)
        for used in sorted(found.uses):
            self._want(module, used)

    def _sort(self, module: str) -> None:
        """Put a module behind all those that it uses something of."""
        if module in self.order:
            return
        source = self._source(module)
        used = {name for number in self.wanted[module] for name in source.statements[number].uses}
        for name in sorted(used):
            other, found = self._find(module, name)
            if isinstance(found, Statement) and other != module:
                self._sort(other)
        self.order.append(module)

    def text(self) -> str:
        """The file."""
        for module in sorted(self.wanted):
            self._sort(module)
        self._require_unique()
        parts = []
        for module in self.order:
            source = self._source(module)
            body = "\n\n".join(source.statements[number].text for number in sorted(self.wanted[module]))
            parts.append(f"# ---- widestream/{module.replace('.', '/')}.py\n\n{body}")
        imports = "\n".join(sorted(self.imports, key=lambda line: (line.split()[1], line)))
        return f"{_HEAD}\n\n{imports}\n\n" + "\n\n".join(parts) + "\n"

    def _require_unique(self) -> None:
        owners: dict[str, str] = {}
        for module in self.order:
            source = self._source(module)
            for number in sorted(self.wanted[module]):
                for name in source.statements[number].binds:
                    if owners.setdefault(name, module) != module:
                        raise BundleError(f"{name} is bound by {owners[name]} and by {module}; rename one.")


def _registry(kind: str) -> Source:
    """The table of streams with one entry."""
    module, _, name = OWN_KINDS[kind].partition(":")
    own = module.removeprefix("widestream.")
    text = (
        f"def stream_class(kind):\n"
        f'    """The class of the one stream that is here."""\n'
        f'    if kind != "{kind}":\n'
        f'        raise UserError(f"This folder has the code of the stream {kind}, and not of {{kind!r}}.")\n'
        f"    return {name}\n\n\n"
        f"def settings_class(kind):\n"
        f'    """The dataclass of its settings."""\n'
        f"    return stream_class(kind).Config\n"
    )
    source = _take_apart(text, _REGISTRY)
    source.inside |= {name: (own, name), "UserError": ("errors", "UserError")}
    return source


@cache
def _read(module: str) -> Source:
    path = PACKAGE / (module.replace(".", "/") + ".py")
    path = path if path.is_file() else PACKAGE / module.replace(".", "/") / "__init__.py"
    return _take_apart(path.read_text(encoding="utf-8"), module)


def _take_apart(text: str, module: str) -> Source:
    source, lines = Source(), text.splitlines()
    end = 0
    for node in ast.parse(text).body:
        first = min([node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", ()))]) - 1
        while first > end and lines[first - 1].startswith("#"):  # the comment above belongs to it
            first -= 1
        end = node.end_lineno or node.lineno
        own = "\n".join(lines[first:end])
        if isinstance(node, ast.Import | ast.ImportFrom):
            _note_import(node, source, module)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if source.statements:  # a docstring of the name above it; the module's own is left out
                source.statements[-1].text += f"\n{own}"
        else:
            source.statements.append(Statement(own, _bound(node), _used(node), not _imports_inside(node)))
    return source


def _note_import(node: ast.Import | ast.ImportFrom, source: Source, module: str) -> None:
    for alias in node.names:
        name = alias.asname or alias.name
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "widestream":
            if alias.asname:
                raise BundleError(f"{module} imports {alias.name} under another name.")
            source.inside[name] = (node.module or "").removeprefix("widestream").lstrip("."), alias.name
        else:
            source.outside[name.partition(".")[0]] = ast.unparse(
                ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0)
            )


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _used(node: ast.stmt) -> set[str]:
    """Names that a statement reads; quoted annotations are read by nobody."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _imports_inside(node: ast.stmt) -> bool:
    parts = (part for part in ast.walk(node) if isinstance(part, ast.ImportFrom))
    return any((part.module or "").startswith("widestream") for part in parts)
