"""The README's commands and keys exist, and the set-up scripts say what they do."""

import ast
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pre_compute_dino_feature
import test as test_script
import train as train_script
from config import ROOT, iter_keys, load_config
from script.check_requirements import find_missing, parse_version

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"train.py": train_script, "test.py": test_script, "pre_compute_dino_feature.py": pre_compute_dino_feature}


def find_commands(page: Path) -> list[str]:
    """Commands of the page's shell blocks and, in tables, of its code spans."""
    text = page.read_text()
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S):
        lines += block.replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|sh|accelerate) [^`]+)`", text)
    return sorted({line.split(" #")[0].strip() for line in lines} - {""})


COMMANDS = sorted({command for page in PAGES for command in find_commands(page)})


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("sh ")])
def test_shell_scripts_exist_and_parse(command):
    script = shlex.split(command)[1]
    if "{" in script:
        return
    assert (ROOT / script).is_file()
    subprocess.run(["sh", "-n", script], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if any(f" {name}" in c for name in SCRIPTS) and "..." not in c]
)
def test_python_commands_parse_and_their_settings_exist(command, monkeypatch):
    words = shlex.split(command)
    name = next(word for word in words if word in SCRIPTS)
    monkeypatch.setattr(sys, "argv", words[words.index(name) :])
    args = SCRIPTS[name].parse_args()
    cfg = load_config(args.config_file, args.opts)
    assert cfg.is_frozen()


def test_keys_named_in_the_pages_exist():
    known = {key for key, _ in iter_keys(load_config())}
    sections = {key.split(".")[0] for key in known if "." in key}
    for page in PAGES:
        named = {m.group() for m in re.finditer(r"\b[A-Z]+\.[A-Z_]+\b", page.read_text())}
        assert {key for key in named if key.split(".")[0] in sections} <= known, page


def test_links_and_pictures_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


EQUATIONS = re.findall(r"^\| \((\d+)\) \|.*\| (.*) \|$", README, flags=re.M)


def find_sources(path: Path, name: str) -> list[str]:
    """The lines of the functions and classes of that name in a file."""
    text = path.read_text()
    defined = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, defined) and node.name == name]
    return ["\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) for node in nodes]


def test_equations_are_numbered():
    assert [number for number, _ in EQUATIONS] == [str(n + 1) for n in range(len(EQUATIONS))] != []


@pytest.mark.parametrize(("number", "where"), EQUATIONS, ids=[number for number, _ in EQUATIONS])
def test_equations_stand_where_the_table_says(number, where):
    places = re.findall(r"`(\w+)` in \[[^]]+\]\(([^)]+)\)", where)
    assert places
    for name, file in places:
        assert any(f"Eq. ({number})" in source for source in find_sources(ROOT / file, name)), f"{file}: {name}"


def test_requirements_are_checked_by_version():
    assert parse_version("2.13.0+cpu") == (2, 13, 0)
    assert find_missing(["# comment", "", "pytest>=1.0  # used here"]) == []
    assert find_missing(["pytest>=999", "no-such-package"]) == [
        f"pytest: {pytest.__version__} is older than 999",
        "no-such-package: not installed",
    ]


def run_setup(tmp_path, **env):
    script = f". {ROOT}/script/setup.sh"
    command = ["sh", "-c", script, f"{ROOT}/script/demo.sh"]
    return subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
    )


def test_setup_takes_the_current_python_if_it_will_do(tmp_path):
    done = run_setup(tmp_path, PYTHON=sys.executable)
    assert done.returncode == 0 and f"using {sys.executable}" in done.stderr
    assert not list(tmp_path.iterdir())


def test_setup_without_a_python_says_so(tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("dirname", "basename", "sh", "env"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    done = run_setup(tmp_path, PATH=str(tmp_path / "bin"), PYTHON="/nowhere/python")
    assert done.returncode == 1 and "no Python 3.11 or newer found" in done.stderr


NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}


def test_setup_without_a_network_says_so(tmp_path):
    bare = Path(sys.base_prefix) / "bin" / "python3"
    check = [bare, ROOT / "script/check_requirements.py", ROOT / "requirements.txt"]
    if subprocess.run(check, capture_output=True, check=False).returncode == 0:
        pytest.skip("the Python below this environment has all requirements")
    done = run_setup(tmp_path, PYTHON=str(bare), VENV=str(tmp_path / "a folder" / "venv"), **NO_INDEX)
    assert done.returncode == 1
    assert "lacks:" in done.stderr and "No network, or no disk space?" in done.stderr
    assert "ERROR: " in done.stderr  # pip is heard


@pytest.fixture
def own(tmp_path):
    """The folder of a Python that has a PyTorch 99.0, and nothing else."""
    folder = tmp_path / "own"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/*/site-packages")
    (site / "torch.py").write_text("")
    (site / "torch-99.0.dist-info").mkdir()
    (site / "torch-99.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    return folder


def test_setup_shares_a_pytorch_that_is_there(tmp_path, own):
    """A Python that has PyTorch, but not the rest: the new environment sees it, and pip is not asked for another."""
    venv = tmp_path / "venv"
    done = run_setup(tmp_path, PYTHON=str(own / "bin" / "python"), VENV=str(venv), **NO_INDEX)
    assert done.returncode == 1 and "PyTorch, which is shared" in done.stderr
    command = [venv / "bin" / "python", "-c", "import torch; print(torch.__file__)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(own)
    check = [venv / "bin" / "python", ROOT / "script/check_requirements.py", ROOT / "requirements.txt"]
    missing = subprocess.run(check, capture_output=True, text=True, check=False).stdout.split()
    assert "torchvision:" in missing and "torch:" not in missing


def write_wheel(folder, name, version, needed):
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info"
        described = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", described + "".join(f"Requires-Dist: {line}\n" for line in needed))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_setup_installs_no_second_pytorch(tmp_path, own):
    """The torchvision that fits the PyTorch that is shared, not the newest with the PyTorch that it needs."""
    (tmp_path / "wheels").mkdir()
    for name, version, *needed in (
        ("torch", "100.0"),
        ("torchvision", "1.0", "torch==99.0"),
        ("torchvision", "2.0", "torch==100.0"),
    ):
        write_wheel(tmp_path / "wheels", name, version, needed)
    (tmp_path / "needs.txt").write_text("torch>=2.0\ntorchvision>=0.1\n")
    index = NO_INDEX | {"PIP_FIND_LINKS": str(tmp_path / "wheels"), "PIP_CONFIG_FILE": os.devnull}
    where = {"PYTHON": str(own / "bin" / "python"), "VENV": str(tmp_path / "venv")}
    done = run_setup(tmp_path, needs=str(tmp_path / "needs.txt"), **where, **index)
    assert done.returncode == 0, done.stderr
    (site,) = (tmp_path / "venv").glob("lib/*/site-packages")
    assert sorted(path.name for path in site.glob("torch*")) == ["torchvision-1.0.dist-info"]


def test_every_package_that_is_imported_is_required():
    """Anywhere in a file: in requirements.txt or -label (done without), or those of the app and of the tests for these.
    Where the file is imported: in requirements.txt, or those of the page and of the tests for these."""
    names = {"PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml"}
    ours = {path.name for path in ROOT.iterdir()} | {path.stem for path in ROOT.glob("*.py")}
    gradio = {"gradio", "fastapi", "uvicorn"}  # the last two come with it
    comes_with = {"app": gradio, "sd4match": gradio, "tests": gradio | {"playwright"}}

    def required(*files):
        lines = "\n".join((ROOT / file).read_text() for file in files)
        return set(re.findall(r"^([\w-]+)>=", lines, flags=re.M)) | {"setuptools"}

    def imported(nodes):
        for node in nodes:
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            yield from (names.get(name.split(".")[0], name.split(".")[0]) for name in found)

    packages = ("config", "dataset", "engine", "loss", "model", "utils", "mini", "script", "sd4match", "app", "tests")
    for folder in ("", *packages):
        more = ("requirements-test.txt",) if folder == "tests" else ()
        anywhere = required("requirements.txt", "requirements-label.txt", *more) | comes_with.get(folder, set())
        for path in (ROOT / folder).rglob("*.py") if folder else ROOT.glob("*.py"):
            page = ("requirements-app.txt",) if path == ROOT / "app" / "page.py" else ()
            tree = ast.parse(path.read_text())
            for nodes, known in ((ast.walk(tree), anywhere), (tree.body, required("requirements.txt", *more, *page))):
                assert set(imported(nodes)) - ours - set(sys.stdlib_module_names) <= known, path
