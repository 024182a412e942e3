"""Small files, small functions, names that say what is inside, nothing dangerous, nothing unfinished."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src"
TREES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
GRAB_BAGS = {"util", "utils", "misc", "common", "helper", "helpers", "manager", "handler", "stuff", "tools"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill"}


def every_node():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def test_files_are_small():
    long = [str(path) for path in TREES if path.read_text("utf-8").count("\n") > LONGEST_FILE]
    assert not long, f"longer than {LONGEST_FILE} lines"


def test_functions_are_small():
    functions = [
        (where, node) for where, node in every_node() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [f"{where} {node.name}" for where, node in functions if node.end_lineno - node.lineno >= LONGEST_FUNCTION]
    assert not long, f"longer than {LONGEST_FUNCTION} lines"


def test_names_say_what_is_inside():
    assert not [str(path) for path in TREES if GRAB_BAGS & set(path.stem.lower().split("_"))]
    classes = [(where, node.name) for where, node in every_node() if isinstance(node, ast.ClassDef)]
    assert not [pair for pair in classes if pair[1].endswith(("Manager", "Handler", "Helper", "Util"))]


def test_every_module_says_what_it_is():
    assert not [str(path) for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]


def test_nothing_dangerous():
    found = []
    for where, node in every_node():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "print"):
            found.append((where, node.func.id))
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            found += [(where, name) for name in names & FORBIDDEN_MODULES]
        if isinstance(node, ast.keyword) and node.arg == "shell" and getattr(node.value, "value", True):
            found.append((where, "shell"))
    assert not found


def test_nothing_unfinished():
    raised = [
        where for where, node in every_node() if isinstance(node, ast.Raise) and "NotImplemented" in ast.unparse(node)
    ]
    marked = [str(path) for path in TREES if "TODO" in path.read_text("utf-8") or "FIXME" in path.read_text("utf-8")]
    assert not raised
    assert not marked
