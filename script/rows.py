"""Run rows of the paper's tables: learn what is missing, test it, skip what is finished.

    python script/rows.py table1 table4               # real weights and data
    python script/rows.py table4 --mini               # the mini world
    python script/rows.py table1 --list               # what each row would do, and how long it would take
    python script/rows.py test_timestep               # the figure of accuracy over the timestep
    python script/rows.py table3 --only cpm-spair/pfwillow --seeds 0 1 2 --opts TEST.ENSEMBLE 4

Stopping is safe: the same command goes on from there. script/table.py prints the tables.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import ROOT, ConfigError, load_config, resolve_path  # noqa: E402
from engine.argument import positive  # noqa: E402
from engine.check import check_config  # noqa: E402
from engine.entry import entry_point  # noqa: E402
from script.tables.crew import Crew, Slot, find_slots  # noqa: E402
from script.tables.rows import (  # noqa: E402
    MINI,
    PICTURES,
    REAL,
    SHOWN,
    SMOKE,
    SWEEP,
    Row,
    World,
    build_tables,
    list_settings,
    list_test_settings,
    unique_rows,
)


def add_row_arguments(parser: argparse.ArgumentParser) -> None:
    """What script/table*.sh give both to this script and to script/table.py, which ignores --only and --jobs."""
    parser.add_argument("--mini", action="store_true", help="on the mini world")
    parser.add_argument("--smoke", action="store_true", help="with --mini: two rows, a few steps, one category")
    parser.add_argument("--output", help="folder of everything that is written; default: that of the world")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each row once per seed; default: 0")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings of every row")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="run only these rows")
    parser.add_argument(
        "--jobs", type=positive, help="rows that run side by side; default: one per GPU, without a GPU two"
    )


def choose_world(args: argparse.Namespace) -> World:
    if args.smoke and not args.mini:
        raise ConfigError("--smoke is a short form of --mini; give both")
    world = SMOKE if args.smoke else MINI if args.mini else REAL
    return replace(world, root=args.output) if args.output else world


def choose_rows(world: World, names: Sequence[str], only: Sequence[str] = ()) -> list[Row]:
    """The rows of the named tables; ConfigError lists the known tables or rows."""
    tables = build_tables(world)
    known = [*tables, SWEEP, PICTURES]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no table {', '.join(unknown)}; known: {', '.join(known)}")
    named = unique_rows(tables[name] for name in names or tables if name in tables)
    shown = [row for row in unique_rows(tables.values()) if row.key in SHOWN and {SWEEP, PICTURES} & set(names)]
    rows = list({row.key: row for row in (*named, *shown)}.values())
    known = [row.key for row in rows]
    if unknown := [key for key in only if key not in known]:
        raise ConfigError(f"no row {', '.join(unknown)} in these tables; known: {', '.join(known)}")
    return [row for row in rows if row.key in (only or known) and (not world.only or row.key in world.only)]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="such as table1, table4, length; default: all")
    add_row_arguments(parser)
    parser.add_argument("--list", action="store_true", help="print the plan with its commands, run nothing")
    return parser.parse_args()


class Runner:
    """Runs jobs, each stage in a process of its own, and keeps a record of them."""

    def __init__(self, world: World, more: Sequence[str], crew: Crew) -> None:
        from script.tables.results import State

        self.world, self.more, self.crew = world, list(more), crew
        self.state = State.load(world.root)
        self.jobs: list = []
        self.costs: dict[str, dict[str, float]] = {}
        self.impossible: dict[str, str] = {}  # row -> why it cannot be run

    def plan(self, rows: Sequence[Row], seeds: Sequence[int]) -> None:
        """Sets the jobs, cheap ones first; notes the rows that cannot run."""
        from engine.errors import USER_ERRORS, explain
        from script.tables.estimate import count_tflop
        from script.tables.results import make_job

        for seed in seeds:
            for row in rows:
                key = f"{row.key}@seed{seed}" if seed else row.key
                try:
                    job = make_job(row, self.world, seed, self.more)
                    self._refuse_missing(job)
                    self.costs[key] = count_tflop(job)
                    self.jobs.append(job)
                except (*USER_ERRORS, ValueError) as error:
                    self.impossible[key] = shorten(explain(error))
        self.jobs.sort(key=lambda job: sum(self.costs[job.key].values()))

    def _refuse_missing(self, job) -> None:
        """ConfigError for settings that cannot work, and for a network that the offline world does not have."""
        from model.backbone.facts import is_hub_id
        from model.prompt.name import parse_prompt_name
        from model.source import find_condition

        if len(self.crew.slots) > 1 and job.test.DEVICE.startswith("cuda:"):
            raise ConfigError(f"rows side by side choose their GPU: leave out DEVICE {job.test.DEVICE} or add --jobs 1")
        check_config(job.test, training=False)
        if job.training is not None:
            check_config(job.training, training=True)
        condition = parse_prompt_name(job.test.PROMPT.TYPE).condition
        if condition and self.world.name == "mini" and is_hub_id(find_condition(job.test, condition)["folder"]):
            raise ConfigError(f"the mini world has no {condition.split('-')[0]} network")

    def note_failure(self, key: str, reason: str) -> None:
        self.state.record(rows={key: {"reason": reason}})

    def commands(self, job) -> Iterator[tuple[str, list[str]]]:
        """(stage, command) of what the row still needs."""
        from script.tables.results import is_trained

        file = ["--config_file", self.world.config_file(job.row)]
        if not is_trained(job, self.state):
            yield "train", ["train.py", *file, *list_settings(job.row, self.world, job.seed, self.more)]
        settings = list_test_settings(job.row, self.world, job.seed, self.more)
        yield "test", ["test.py", *file, *settings, "PROMPT.TYPE", job.test.PROMPT.TYPE]

    def run(self, job, slot: Slot) -> bool:
        """Whether the row is finished now."""
        from script.tables.results import digest_training, digest_weights

        entry = {"seconds": {}, "tflop": self.costs[job.key]}
        for stage, command in self.commands(job):
            log = Path(resolve_path(self.world.root)) / "row" / job.key.replace("/", "_") / f"{stage}.log"
            start = time.monotonic()
            status = self.crew.run([sys.executable, *command], log, slot)
            if status:
                self.note_failure(job.key, f"{explain_log(log)} (log: {os.path.relpath(log, ROOT)})")
                return False
            entry["seconds"][stage] = time.monotonic() - start
            if stage == "train":
                self.state.record(prompts={str(job.prompt_folder): digest_training(job)})
        entry["weights"] = digest_weights(job.test, job.test.PROMPT.TYPE)  # the first row may have downloaded them
        self.state.record(rows={job.key: entry})
        return True


def group_by_prompt(jobs: Sequence) -> list[list]:
    """Jobs that test the same learned prompt belong together: the first of them learns it."""
    groups: dict[str, list] = {}
    for job in jobs:
        groups.setdefault(str(job.prompt_folder) if job.training is not None else job.key, []).append(job)
    return list(groups.values())


def explain_log(log: Path) -> str:
    """What the command said last of why it stopped."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [number for number, line in enumerate(lines) if re.match(r"(train|test)\.py: ", line)]
    return shorten("\n".join(lines[said[-1] :] if said else lines[-1:]))


def shorten(text: str, length: int = 300) -> str:
    """The first line of a message, or all of it on one line if the first only announces a list; paths relative."""
    first, *_ = text.strip().splitlines() or [""]
    text = " ".join((text if first.endswith(":") else first).replace(f"{ROOT}/", "").split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def find_shown(runner: Runner) -> list:
    """The finished jobs whose prompts figures show."""
    from script.tables.results import find_result

    return [job for job in runner.jobs if job.row.key in SHOWN and not job.seed and find_result(job, runner.state)]


def run_figure(script: str, jobs: Sequence, runner: Runner, *flags: str) -> int:
    """Run a script on the prompts of some jobs, with the settings of their test; the exit status."""
    world = runner.world
    command = [sys.executable, script, "--config_file", world.config_file(Row("", "base", "spair")), *flags]
    command += ["--prompts", *(job.test.PROMPT.TYPE for job in jobs)]
    command += ["--opts", "OUTPUT_ROOT", world.root, *world.opts, *runner.more]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def sweep(runner: Runner) -> int:
    """PCK over the timestep for those shown prompts that are there; the exit status."""
    from model.prompt.name import parse_prompt_name
    from script.tables.estimate import Clock, count_pass, format_duration

    jobs, timesteps = find_shown(runner), runner.world.timesteps
    if not jobs:
        print(f"{SWEEP}: not run: none of {', '.join(SHOWN)} is finished")
        return 1
    first = jobs[0].test
    prompts = [parse_prompt_name(job.test.PROMPT.TYPE) for job in jobs]
    tflop = sum(count_pass(first, prompt, first.VAL.SPLIT, first.TEST.ENSEMBLE) for prompt in prompts)
    seconds = Clock(first, runner.state).seconds("test", len(timesteps) * tflop)
    print(f"{SWEEP}: at most {format_duration(seconds)}", flush=True)
    flags = ["--split", first.VAL.SPLIT, "--timesteps", *map(str, timesteps)]
    return run_figure("script/sweep_timestep.py", jobs, runner, *flags)


def draw_pictures(runner: Runner) -> int:
    """The same pairs under those shown prompts that were tested at the usual timestep; the exit status."""
    jobs = find_shown(runner)
    jobs = [job for job in jobs if job.test.TEST.TIMESTEP == jobs[-1].test.TEST.TIMESTEP]
    if not jobs:
        print(f"{PICTURES}: not drawn: none of {', '.join(SHOWN)} is finished")
        return 1
    return run_figure("script/compare.py", jobs, runner, "--pairs", "2")


def stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def run_all(runner: Runner, listing: bool) -> int:
    """The number of rows that could not be finished."""
    from script.tables.estimate import Clock, format_duration
    from script.tables.results import find_result

    waiting = [job for job in runner.jobs if find_result(job, runner.state) is None]
    print(f"{len(runner.jobs) - len(waiting)} rows are finished, {len(waiting)} to do; below {runner.world.root}")
    for reason in dict.fromkeys(runner.impossible.values()):
        print(f"not run: {', '.join(key for key, why in runner.impossible.items() if why == reason)}: {reason}")
    if not listing:
        for key, reason in runner.impossible.items():
            runner.note_failure(key, reason)
    if not waiting:
        return 0
    clock = Clock(waiting[0].test, runner.state, runner.crew.rows_per_device)
    print(clock.explain())
    numbers = {job.key: number for number, job in enumerate(waiting, start=1)}
    failed = []

    def announce(job) -> str:
        stages = [stage for stage, _ in runner.commands(job)]
        expected = {stage: clock.seconds(stage, runner.costs[job.key][stage]) for stage in stages}
        parts = " + ".join(f"{stage} {format_duration(s)}" for stage, s in expected.items())
        return f"[{numbers[job.key]}/{len(waiting)}] {job.key}: about {parts}"

    def do(job, slot: Slot) -> None:
        print(announce(job), flush=True)
        if not runner.run(job, slot):
            failed.append(job)
            print(f"    {job.key} not run: {runner.state.rows[job.key]['reason']}", flush=True)
            return
        entry = runner.state.rows[job.key]
        for stage, seconds in entry["seconds"].items():
            clock.learn(stage, entry["tflop"][stage], seconds)
        print(f"    {job.key} took {format_duration(sum(entry['seconds'].values()))}", flush=True)

    if listing:
        for job in waiting:
            print(announce(job))
            for _, command in runner.commands(job):
                print("    " + shlex.join(["python", *command]))
    else:
        runner.crew.work(group_by_prompt(waiting), do)
    return len(failed)


@entry_point("the same command goes on from here")
def main() -> int:
    args = parse_args()
    signal.signal(signal.SIGTERM, stop)
    world = choose_world(args)
    load_config(world.config_file(Row("", "base", "spair")), args.opts)  # a mistyped setting stops here
    rows = choose_rows(world, args.tables, args.only)
    runner = Runner(world, args.opts, Crew(find_slots(args.jobs)))
    runner.plan(rows, args.seeds)
    failures = run_all(runner, args.list)
    for name, draw in {SWEEP: sweep, PICTURES: draw_pictures}.items():
        if name in args.tables and not args.list:
            failures += draw(runner) != 0
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
