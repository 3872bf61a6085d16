"""What `pip install .` gives, built and installed without network: one package, which works from any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from config import ROOT
from tests.fixtures_dataset import draw_image


def run(*command, **options):
    """The finished command; its output is shown if it failed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=250, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", reason="building the wheel offline needs setuptools in this environment")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A fresh environment that sees this one's packages, with the wheel installed."""
    venv = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (site / "heavy.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed")
    run(*pip, wheel)
    assert {path.name for path in site.iterdir()} == {"sd4match", "sd4match-0.1.0.dist-info", "heavy.pth"}
    return python


@pytest.fixture
def elsewhere(tmp_path):
    """Options to run a command in a folder with two pictures, by a user who may write to `home` only."""
    for name in "ab":
        draw_image(tmp_path / f"{name}.png", (96, 128))
    (tmp_path / "utils.py").write_text("raise SystemExit('a package of the user was taken for ours')\n")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": {**env, "SD4MATCH_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}}


def test_the_wheel_holds_one_package_and_the_mini_networks(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert {name.split("/")[0] for name in names} == {"sd4match", "sd4match-0.1.0.dist-info"}
    assert "sd4match/asset/mini/stable-diffusion/unet/config.json" in names
    assert "sd4match/asset/mini/stable-diffusion-words/unet/config.json" in names
    assert "sd4match/config/mini/base.yaml" in names and "sd4match/app/static/stage.js" in names
    assert not [name for name in names if name.startswith(("sd4match/tests", "sd4match/mini", "sd4match/script"))]


def test_matching_from_python_beside_a_namesake(python, elsewhere):
    code = (
        "import sys, sd4match\n"
        "found = sd4match.Matcher.from_pretrained('mini', device='cpu').pair('a.png', 'b.png').match([(20, 30)])\n"
        "assert len(found) == 1 and 'sd4match.utils.image' in sys.modules and 'utils' not in sys.modules\n"
        "try: sd4match.Matcher.from_pretrained('mini', device='cpu').encode('c.png')\n"
        "except sd4match.ImageError: pass\n"
        "from sd4match.config import load_config, resolve_path\n"
        "print(sd4match.__file__, resolve_path(load_config('config/mini/base.yaml').OUTPUT_ROOT))\n"
    )
    file, output = run(python, "-c", code, **elsewhere).stdout.split()
    assert file.startswith(str(python.parents[1]))
    assert output == str(elsewhere["cwd"] / "home" / "asset" / "mini" / "sd4match")


def test_the_commands(python, elsewhere):
    command = python.parent / "sd4match-match"
    done = run(command, "a.png", "b.png", "--network", "mini", "--points", "20,30", "--json", **elsewhere)
    assert json.loads(done.stdout)["network"] == "mini"
    assert list(elsewhere["cwd"].glob("*matches*.png"))
    assert "sd4match-demo --network" in run(python.parent / "sd4match-demo", "--help", **elsewhere).stdout


def test_every_installed_module_can_be_imported(python, elsewhere):
    code = (
        "import importlib.util, pkgutil, sd4match\n"
        "for found in pkgutil.walk_packages(sd4match.__path__, 'sd4match.'):\n"
        "    if found.name != 'sd4match.app.page' or importlib.util.find_spec('gradio'):\n"
        "        importlib.import_module(found.name)\n"
    )
    run(python, "-c", code, **elsewhere)


def test_the_checkout_is_used_as_it_is_by_an_editable_install(python, tmp_path):
    """What `pip install -e .` puts on the path is the checkout's own package."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "import sd4match, sys; sd4match.Matcher; print(sd4match.__file__, 'utils.image' in sys.modules)"
    file, plain = run(sys.executable, "-c", code, cwd=tmp_path, env=env).stdout.split()
    assert Path(file).parent == ROOT / "sd4match" and plain == "True"
