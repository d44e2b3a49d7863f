"""What pyproject.toml and constraints.txt promise to who installs the package."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ddcap

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*Path(ddcap.__file__).parent.rglob("*.py"), *(ROOT / "experiments").glob("*.py")])


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(project, *extras):
    """What the package and its extras ask for, extras of extras included."""
    found = [Requirement(text) for text in project["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, project["optional-dependencies"][extra]):
            own = requirement.name == project["name"]
            found += requirements(project, *requirement.extras) if own else [requirement]
    return found


def extras_told():
    """Every extra that a message tells to install, with the packages whose import had failed."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Try):
                continue
            for handler in node.handlers:
                for call in ast.walk(handler):
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "MissingExtraError":
                        imports = [one for body in node.body for one in ast.walk(body)]
                        names = {one.module for one in imports if isinstance(one, ast.ImportFrom)}
                        plain = [one for one in imports if isinstance(one, ast.Import)]
                        names |= {alias.name for one in plain for alias in one.names}
                        yield source.name, call.args[1].value, {name.partition(".")[0] for name in names}


def test_the_extra_that_a_message_names_holds_what_is_missing_and_is_for_users(project):
    distributions = importlib.metadata.packages_distributions()
    told = list(extras_told())
    assert len(told) > 8 and {"clip", "eval", "report"} <= {extra for _, extra, _ in told}
    for source, extra, modules in told:
        assert extra != "dev", f"{source}: dev is for who works on ddcap"
        given = {canonicalize_name(requirement.name) for requirement in requirements(project, extra)}
        for module in modules:
            names = {canonicalize_name(name) for name in distributions.get(module, [module])}
            assert names & given, f"{source}: the extra {extra!r} does not bring {module}"


def test_types_are_for_users_too(project):
    assert (Path(ddcap.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in project["classifiers"]


# --- constraints.txt against what the README's two set-up commands install


def installed(wanted):
    """Names of all packages that requirements bring, and of those whose version the one that asks pins."""
    names, pinned, seen, left = set(), set(), set(), [(requirement, "") for requirement in wanted]
    while left:
        requirement, extra = left.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        names.add(name)
        if any(part.operator == "==" and "*" not in part.version for part in requirement.specifier):
            pinned.add(name)
        distribution = importlib.metadata.distribution(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                left += [(Requirement(text), extra) for text in distribution.requires or []]
    return names, pinned


def constrained(name="constraints.txt"):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="constraints.txt is what Python 3.11 was tested with"
)
def test_constraints_name_every_package_that_the_two_commands_install_and_no_other(project):
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- set-up -->")[1]
    assert re.findall(r'pip install -c constraints.txt "?(\.\S*?)"? &&', block) == [".", ".[dev]"]
    names, pinned = installed(requirements(project, "dev"))
    listed = {canonicalize_name(requirement.name) for requirement in constrained()}
    assert len(listed) == len(constrained())
    follows_torch = re.compile(r"nvidia-|cuda-|triton")  # its builds for GPUs choose these
    missing = {name for name in names - pinned - listed if not follows_torch.match(name)}
    assert not missing, f"not in constraints.txt: {sorted(missing)}"
    assert not listed - names, f"installed by nothing: {sorted(listed - names)}"


def test_constraints_are_pins_that_the_requirements_allow(project):
    wanted = {canonicalize_name(one.name): one.specifier for one in requirements(project, "dev")}
    for requirement in constrained():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        specifier = wanted.get(canonicalize_name(requirement.name))
        assert specifier is None or specifier.contains(pin.version), requirement


# what .ci/run installs, by the constraints it is installed with
INSTALLED_BY_CI = {"constraints.txt": "dev", "constraints-web.txt": "dev-web"}


def install_lines():
    """Where a document installs the package, with the constraints and the extras it names."""
    for name in ("README.md", "CONTRIBUTING.md", "Dockerfile", "mkdocs.yml"):
        yield from lines_of(ROOT / name)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        yield from lines_of(page)


def lines_of(page):
    for line in re.findall(r"(?<!uv )pip install [^`#&|\n]+", page.read_text(encoding="utf-8")):
        if "'ddcap[" in line:  # a message of the program, quoted: of one who has no clone
            continue
        found = re.search(r'-c (\S+) (?:-e )?(?:"\.\[(\S+)\]"|"?\.")?', line)
        assert found is not None, f"{page.name}: '{line}' has no constraints"
        yield f"{page.name}: {line}", found[1], (found[2] or "").split(",") if found[2] else []


def test_every_install_line_of_the_documents_is_part_of_what_ci_installs(project):
    lines = list(install_lines())
    assert len(lines) > 12 and {constraints for _, constraints, _ in lines} == set(INSTALLED_BY_CI)
    for line, constraints, extras in lines:
        tested = {canonicalize_name(one.name) for one in requirements(project, INSTALLED_BY_CI[constraints])}
        asked = {canonicalize_name(one.name) for one in requirements(project, *extras)}
        assert asked <= tested, f"{line}: {sorted(asked - tested)} are not tested with {constraints}"


def test_ci_installs_what_the_lines_of_the_documents_are_part_of():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for constraints, extra in INSTALLED_BY_CI.items():
        assert f'install -c {constraints} ".[{extra}]"' in script + (ROOT / "README.md").read_text()
        assert (ROOT / constraints).is_file()


def test_ci_runs_the_slow_tests_that_a_plain_run_leaves_out():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (options,) = re.findall(r"PYTEST_ADDOPTS=\$(\w+) eval ", script)  # of two -m pytest takes the last
    assert re.search(rf"^{options}='-m \"slow or not slow\"", script, re.M)
    assert "-m 'not slow'" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_without_the_repository_the_experiments_say_where_they_are(tmp_path):
    shutil.copytree(ROOT / "src" / "ddcap", tmp_path / "ddcap", ignore=shutil.ignore_patterns("pretrained"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "ddcap", "report", "nothing"]
    if sys.version_info < (3, 11):
        command.remove("-P")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "ddcap: the experiments are not part of the installed package; clone the repository and run there: "
        "python -m experiments report"
    )
    assert done.stderr.count("\n") == 1


def test_the_page_is_tested_with_what_everything_else_is_but_for_what_gradio_wants(project):
    pins = [
        {canonicalize_name(one.name): str(one.specifier) for one in constrained(name)}
        for name in ("constraints.txt", "constraints-web.txt")
    ]
    shared = pins[0].keys() & pins[1].keys()
    assert {name for name in shared if pins[0][name] != pins[1][name]} == {"pillow", "tomlkit"}
    wanted = requirements(project, "dev-web")
    assert {canonicalize_name(one.name) for one in wanted} <= pins[1].keys()
    for requirement in wanted:
        pin = pins[1][canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(pin), requirement
