"""Submit a recipe or a pipeline to SLURM, see what became of it, cancel it.

    python slurm/submit.py configs/pretrain/mavil_stage1.yaml data.train=shards/train --nodes 8 --gpus-per-node 8 --partition gpu
    python slurm/submit.py slurm/pipelines/mavil.yaml --profile gpu_cluster        stages that wait for each other
    python slurm/submit.py ABLATION.yaml --profile gpu_cluster                     an array for each variant, then the table
    python slurm/submit.py RECIPE --dry-run                                        what would be submitted
    python slurm/submit.py status [RUN or JOB]...
    python slurm/submit.py cancel RUN or JOB...

A job runs what you would type: `python -m mavil train RECIPE ... --out RUN --resume`, once per rank. docs/clusters.md tells
what happens at time limits, preemption and crashes.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # Python puts this file's own folder first; the repository has to be there, for ``slurm`` to be found from anywhere.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from mavil.pipelines.reading import PlanError, refuse_unknown
from mavil.pipelines.stages import Stage, single_stage
from slurm import launch, records
from slurm.pipelines import holds_several, load_stages
from slurm.profiles import Profile, SubmitError, from_options, load_profile, option_types

EXIT_MISTAKE = 2


def submit(arguments: list[str]) -> int:
    """Submit what the command line says; return the exit code."""
    chosen = _submit_parser().parse_intermixed_args(arguments)
    path = Path(chosen.recipe)
    wrong = [change for change in chosen.changes if "=" not in change]
    if wrong:
        raise SubmitError(f"{wrong[0]!r} is not a KEY=VALUE; see --help for the options")
    if not path.is_file():
        raise SubmitError(f"{path}: no such recipe or pipeline; recipes are listed in configs/README.md")
    if holds_several(path):
        if chosen.changes:
            raise SubmitError(f"{chosen.changes[0]!r}: {path} holds the changes of its runs, write it there")
        stages = load_stages(path, chosen.out)
    else:
        stages = [single_stage(path, chosen.changes, chosen.out)]
    options = from_options({key: getattr(chosen, key) for key in option_types()})
    profiles = {
        stage.name: load_profile(chosen.profile, (str(path), stage.resources), ("the command line", options))
        for stage in stages
    }
    if chosen.dry_run:
        _print_plan(stages, profiles, chosen.force)
        return 0
    if not chosen.resume:
        _refuse_existing(stages)
    if chosen.check:
        _check(stages, profiles, chosen.force)
    if chosen.executor == "debug":
        return _run_here(stages, profiles, chosen.force)
    _submit_all(stages, profiles, chosen.executor, chosen.force)
    return 0


def status(arguments: list[str]) -> int:
    """Print what became of submitted jobs."""
    parser = _Parser(prog="submit.py status", description="What became of what was submitted.")
    parser.add_argument("names", nargs="*", metavar="RUN or JOB", help="all where none is named")
    found = records.statuses(records.find_records(parser.parse_args(arguments).names))
    if not found:
        print(f"nothing was submitted from here ({records.INDEX} does not exist)")
        return 0
    heads = ("job", "stage", "state", "step", "restarts", "nodes", "run", "log", "why")
    rows = [
        (
            one.record.job,
            one.record.stage,
            one.state,
            "-" if one.step is None else str(one.step),
            str(one.restarts),
            one.nodes or "-",
            _from_here(Path(one.record.run)),
            _from_here(one.log) if one.log.exists() else "-",
            one.reason,
        )
        for one in found
    ]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def cancel(arguments: list[str]) -> int:
    """Cancel jobs and what waits for them."""
    parser = _Parser(prog="submit.py cancel", description="Cancel jobs and those that wait for them.")
    parser.add_argument("names", nargs="*", metavar="RUN or JOB")
    parser.add_argument("--all", action="store_true", help="everything that was submitted from this folder")
    chosen = parser.parse_args(arguments)
    if bool(chosen.names) == chosen.all:
        raise SubmitError(
            "name the runs or jobs to cancel, or --all for everything that was submitted from this folder"
        )
    cancelled = records.cancel(records.find_records(chosen.names))
    for one in cancelled:
        print(f"cancelled {one.job} {one.stage} {_from_here(Path(one.run))}")
    if not cancelled:
        print("nothing to cancel: none of them waits or runs")
    return 0


def _submit_all(stages: list[Stage], profiles: dict[str, Profile], executor: str, force: bool) -> None:
    if executor == "local" and len(stages) > 1:
        raise SubmitError(
            "--executor local cannot let stages wait for each other: take debug (one after another) or slurm, or start them "
            "with mavil pipeline or mavil ablate"
        )
    numbers: dict[str, str] = {}
    try:
        for stage in stages:
            profile = profiles[stage.name]
            after = [numbers[name] for name in stage.depends_on]
            if executor == "local":
                jobs = launch.start_here(stage, profile, force)
            else:
                jobs = launch.submit_to_slurm(stage, profile, after, force)
            numbers[stage.name] = jobs[0].job.partition("_")[0]
            for job in jobs:
                name = " ".join(part for part in (stage.name, job.point.label) if part)
                ranks = profile.num_ranks
                records.record(job.job, name, job.point.run, executor, ranks, job.command, after)
                waits = f" after {', '.join(after)}" if after else ""
                log = _from_here(job.point.run / launch.LOGS / f"{job.job}_0_log.out")
                print(f"{job.job} {name}{waits}: {ranks} ranks, run {_from_here(job.point.run)}, log {log}")
    except PlanError as problem:
        earlier = [one for number in numbers.values() for one in records.find_records([number])]
        if not earlier:
            raise
        records.cancel(earlier)
        raise SubmitError(f"{problem} (stage {stage.name}; {', '.join(numbers)} were cancelled again)") from None


def _print_plan(stages: list[Stage], profiles: dict[str, Profile], force: bool) -> None:
    for stage in stages:
        profile = profiles[stage.name]
        after = [f"<{name}>" for name in stage.depends_on]
        print(f"### {stage.name}: {profile.nodes} nodes x {profile.ranks_per_node} ranks, folder {stage.folder}\n")
        print(launch.batch_script(stage, profile, after))
        print("# each rank runs")
        for point, command in zip(stage.points, launch.commands_of(stage, profile, force), strict=True):
            print(f"{shlex.join(command)}{'    # ' + point.label if point.label else ''}")
        print()


def _refuse_existing(stages: list[Stage]) -> None:
    for stage in stages:
        for point in stage.points:
            if (point.run / "config.yaml").exists():
                raise SubmitError(
                    f"{point.run} already holds a run: pass --resume to let the job continue it, or choose another --out"
                )


def _check(stages: list[Stage], profiles: dict[str, Profile], force: bool) -> None:
    """Let `mavil train --check` find mistakes now: in the queue they would cost hours.

    Stages that wait for others begin from what does not exist yet; their recipes are only read.
    """
    for stage in stages:
        if not stage.is_training:
            continue
        profile, point = profiles[stage.name], stage.points[0]
        arguments = launch.arguments_of(stage, point, profile, force)
        if stage.depends_on:
            command = ["inspect", *point.arguments]
        else:
            command = [*arguments, "--check", "--ranks", str(profile.num_ranks)]
        done = subprocess.run([sys.executable, "-m", "mavil", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise SubmitError(
                f"{stage.name}: {words[-1].removeprefix('mavil: ')} (found by mavil {shlex.join(command)})"
            )


def _run_here(stages: list[Stage], profiles: dict[str, Profile], force: bool) -> int:
    for stage in stages:
        code = launch.run_in_foreground(stage, profiles[stage.name], force)
        if code:
            return code
    return 0


def _from_here(path: Path) -> str:
    """A path as one would type it here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


class _Parser(argparse.ArgumentParser):
    """A mistake is one line with the nearest right option."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"unrecognized arguments: (--[^ =]+)", message)
        if wrong is not None:
            refuse_unknown(wrong.group(1), list(self._option_string_actions), "no option")
        raise SubmitError(f"{message} (see --help)")


def _submit_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="submit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe, a pipeline (a YAML with stages) or an ablation")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--profile", help="a name from slurm/profiles, or a YAML of your own")
    parser.add_argument("--out", type=Path, help="run folder (pipeline, ablation: the folder of all)")
    parser.add_argument("--resume", action="store_true", help="the run folder may hold a run already: continue it")
    parser.add_argument("--force", action="store_true", help="with --resume: also with other settings than before")
    parser.add_argument("--executor", choices=("slurm", "local", "debug"), default="slurm")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and the commands, touch nothing")
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="submit without looking for mistakes first"
    )
    group = parser.add_argument_group("over the profile")
    for name, kind in option_types().items():
        option = "--" + name.replace("_", "-")
        if kind is bool:
            group.add_argument(option, action="store_true", default=None)
        else:
            group.add_argument(option, type=kind, metavar="N" if kind is int else "TEXT")
    return parser


def main() -> None:
    """The command line: a mistake is one line and exit code 2."""
    verbs = {"status": status, "cancel": cancel}
    arguments = sys.argv[1:]
    try:
        if arguments and arguments[0] in verbs:
            sys.exit(verbs[arguments[0]](arguments[1:]))
        sys.exit(submit(arguments))
    except PlanError as problem:
        print(f"submit: {problem}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)


if __name__ == "__main__":
    main()
