"""Commands: how errors become a line and an exit status, and that help is light."""

import runpy
import subprocess
import sys

import pytest

from config import ROOT, ConfigError
from dataset import MissingDataError
from engine.entry import entry_point

COMMANDS = ["train.py", "test.py", "pre_compute_dino_feature.py", "match.py", "demo.py"]
COMMANDS += [
    f"script/{name}.py"
    for name in (
        *("analyse", "benchmark", "compare", "convert_prompt", "figure", "precision"),
        *("table", "view_results"),
    )
]


def fail(error, **options):
    @entry_point("all is kept", **options)
    def main() -> int:
        raise error

    return main()


@pytest.mark.parametrize(
    ("error", "options", "status", "line"),
    [
        (ConfigError("SEED is odd"), {}, 2, "SEED is odd"),
        (ConfigError("SEED is odd"), {"mendable": (ValueError,), "status": 3}, 2, "SEED is odd"),
        (MissingDataError("no data"), {}, 1, "no data"),
        (OSError(13, "Permission denied", "/x"), {}, 1, "[Errno 13] Permission denied: '/x'"),
        (MissingDataError("no data"), {"status": 3}, 3, "no data"),
        (LookupError("x"), {"mendable": (LookupError,)}, 1, "x"),
        (KeyboardInterrupt(), {}, 130, "interrupted; all is kept"),
    ],
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, error, options, status, line):
    monkeypatch.setattr(sys, "argv", ["somewhere/train.py"])
    assert fail(error, **options) == status
    assert capsys.readouterr() == ("", f"train.py: {line}\n")


def test_a_full_disk_is_told_with_the_way_out(capsys):
    assert fail(OSError(28, "No space left on device", "/x/y.csv")) == 1
    assert "the disk is full (/x/y.csv): make room, or choose another OUTPUT_ROOT" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(capsys):
    with pytest.raises(ValueError, match="a bug"):
        fail(ValueError("a bug"))
    assert capsys.readouterr() == ("", "")


def test_a_main_that_ends_well_gives_its_status():
    @entry_point()
    def main(status: int) -> int:
        return status

    assert main(0) == 0 and main(status=1) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_so(monkeypatch, capsys, command):
    main = runpy.run_path(str(ROOT / command))["main"]

    def parse_args(*_):
        raise ConfigError("SEED is odd")

    monkeypatch.setattr(sys, "argv", [command])
    monkeypatch.setitem(main.__wrapped__.__globals__, "parse_args", parse_args)
    assert main() == 2
    assert capsys.readouterr().err == f"{command.split('/')[-1]}: SEED is odd\n"


HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL", "matplotlib", "scipy", "pandas", "gradio"}


def list_heavy(code, *arguments):
    """Run Python code in a process of its own; what it printed, and the heavy packages that it imported."""
    code = f"import sys\n{code}\nprint('heavy:', *({HEAVY} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.rsplit("heavy:", 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    code = "import runpy\nsys.argv = [sys.argv[1], '--help']\n"
    code += "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit:\n    pass"
    printed, heavy = list_heavy(code, command)
    assert printed.startswith(f"usage: {command.split('/')[-1]}") and not heavy.strip()


def test_a_wrong_setting_is_told_before_anything_heavy_is_imported():
    code = "import train\nsys.argv = ['train.py', 'SEDE', '1']\nprint(train.main())"
    printed, heavy = list_heavy(code)
    assert printed == "2\n" and not heavy.strip()
