import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import ddcap

ROOT = Path(ddcap.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"

# a module imports only from its left; modules of one rank do not import each other
ORDER = [
    {name.strip() for name in rank.split(",")}
    for rank in next(line for line in PAGE.read_text().splitlines() if line.startswith("    errors")).split(
        "<"
    )
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
FACADE = {"Captioner": "captioner", "Caption": "decoding"}  # names that `import ddcap` makes on demand


@cache
def tree_of(source):
    """The syntax tree of a file, parsed once."""
    return ast.parse(source.read_text(encoding="utf-8"))


def part_of(source):
    """The top-level module or subpackage a file belongs to; None for the package's __init__ and __main__."""
    relative = source.relative_to(ROOT)
    name = relative.parts[0] if len(relative.parts) > 1 else relative.stem
    return None if name in ("__init__", "__main__") else name


def imported_parts(source):
    """Top-level parts of ddcap that a file imports anywhere, functions included."""
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            part = rest.partition(".")[0]
            if package == "ddcap" and part and not part.startswith("__"):
                yield FACADE.get(part, part), node.lineno


def calls_in(source):
    """Every call in a file."""
    return [node for node in ast.walk(tree_of(source)) if isinstance(node, ast.Call)]


def source_name(source):
    return str(source.relative_to(ROOT))


def test_source_files_are_found():
    expected = {"recipe", "data", "diffusion", "model", "decoding", "captioner", "commands"}
    assert expected <= {part_of(source) for source in SOURCES}


def test_every_part_has_a_place_in_the_order():
    parts = {part_of(source) for source in SOURCES} - {None}
    imported = {part for source in SOURCES for part, _ in imported_parts(source)}
    assert (parts | imported) - RANK.keys() == set()


def test_imports_come_from_the_left():
    wrong = []
    for source in SOURCES:
        part = part_of(source)
        if part is None:
            continue
        for imported, line in imported_parts(source):
            if imported != part and RANK[imported] >= RANK[part]:
                wrong.append(f"{source_name(source)}:{line}: {part} imports {imported}, not on its left")
    assert wrong == []


def test_no_file_is_over_450_lines():
    lines = {source_name(source): len(source.read_text("utf-8").splitlines()) for source in SOURCES}
    assert {name: count for name, count in lines.items() if count > 450} == {}


def test_images_are_opened_in_one_place():
    """Pillow's `open` without a list of formats starts other programs for some."""
    opened = {
        source_name(source)
        for source in SOURCES
        for call in calls_in(source)
        if ast.unparse(call.func) == "Image.open"
    }
    assert opened == {"data/images.py"}


WRITES_INTO_A_TEMPORARY_FOLDER = {"evaluation/external.py"}


def test_whole_files_are_written_in_one_place():
    """A file written past `ddcap.files` can be found half written, or be written by two processes at once."""
    written = []
    for source in SOURCES:
        if source_name(source) == "files.py" or source_name(source) in WRITES_INTO_A_TEMPORARY_FOLDER:
            continue
        for call in calls_in(source):
            if not isinstance(call.func, ast.Attribute):
                continue
            name = ast.unparse(call.func)
            is_writing = call.func.attr in ("write_text", "write_bytes", "rename")
            if is_writing or name in ("os.replace", "temporary.replace"):
                written.append(f"{source_name(source)}:{call.lineno}: {name}")
    assert written == []


def module_name(source):
    parts = source.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_files_import_each_other():
    """Not even inside of functions."""
    modules = {module_name(source): source for source in SOURCES}
    graph = {name: set() for name in modules}
    for name, source in modules.items():
        for node in ast.walk(tree_of(source)):
            if isinstance(node, ast.ImportFrom):
                found = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                graph[name] |= (found & modules.keys()) - {name, "ddcap"}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_module_edits_sys_path():
    assert [source_name(source) for source in SOURCES if "sys.path" in source.read_text("utf-8")] == []


QUESTIONS = {"what", "how", "who", "whose", "where", "whether", "which", "when", "why"}


def test_no_docstring_opens_with_a_question_word():
    """A docstring says what the function does, verb first, or what a thing is."""
    found = []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    folders = ("experiments", "website", "benchmarks")
    others = [path for folder in folders for path in (PAGE.parents[1] / folder).rglob("*.py")]
    for source in [*SOURCES, *others]:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            if text and text.split()[0].lower().strip("`,.:;") in QUESTIONS:
                found.append(f"{source.name}: {text.splitlines()[0]}")
    assert found == []


def test_no_module_is_called_utils():
    drawers = {"utils", "util", "misc", "common", "helpers", "helper"}
    parts = {part for source in SOURCES for part in source.relative_to(ROOT).with_suffix("").parts}
    assert not parts & drawers


def test_diffusion_imports_nothing_but_errors():
    assert {part for part, _ in imported_parts(ROOT / "diffusion.py")} <= {"errors"}


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["torch", "transformers", "PIL", "numpy", "safetensors", "tokenizers", "pydantic", "yaml"]
    code = f"import sys, ddcap; ddcap.__version__; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""
