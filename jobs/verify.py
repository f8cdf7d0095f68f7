"""Compares all data stored by a run's unit steps with the checksums in the receipts, and repairs damage.

Finds flipped bits, and lost, shortened or exchanged files. Missing units that later steps were made from count as
damaged. With --repair the damaged units are computed again with the settings of their steps, and the same bytes are
stored. With --recompute some units are computed again on this machine, in a temporary folder, and compared. Without
--repair nothing in the run is written. Exit code 2 means that something is damaged, or that this machine computes other
results. Without --step, the trained networks are checked too; a damaged one must be trained again.
"""

from jobs.cli.command_line import job_parser, run_main, underscored
from jobs.run.steps import UNIT_STEPS

EXAMPLES = """examples:
  python jobs/verify.py --run /data/voc
  python jobs/verify.py --run s3://bucket/voc --sample 20
  python jobs/verify.py --run /data/voc --recompute 2
  python jobs/verify.py --run /data/voc --repair
"""


def main(arguments: list[str]) -> None:
    names = [row.name for row in UNIT_STEPS]
    parser = job_parser("verify", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--step", choices=names, type=underscored, help="only this step; default: all started steps")
    parser.add_argument("--sample", type=int, metavar="N", help="only N units of each step, chosen at random")
    parser.add_argument(
        "--recompute",
        type=int,
        metavar="K",
        help="also compute K units of each step again on this machine, and compare the results with the stored bytes",
    )
    parser.add_argument("--repair", action="store_true", help="compute the damaged units again")
    given = parser.parse_args(arguments)
    for flag, count in (("--sample", given.sample), ("--recompute", given.recompute)):
        if count is not None and count < 1:
            raise ValueError(f"{flag} {count}: give the number of units, 1 or more.")
    from jobs.run.directory import open_run  # imports take a second, so --help does without
    from jobs.run.training_record import check_trainings

    run = open_run(given.run, given.config, given.set)
    run.manifest().verify()  # refused before anything slow is imported
    chosen = [given.step] if given.step else names
    if given.dry_run:
        started = [name for name in chosen if run.step(name).fingerprint() is not None]
        print(f"verify, dry run: would check {', '.join(started) or 'nothing: no unit step was started'}.")
        return

    from cluster.connect import connect
    from jobs.cli.launch import job_maker, launch_step
    from jobs.run.fingerprints import outdated_steps
    from jobs.steps.compute import connected
    from jobs.steps.recomputation import recompute_step
    from jobs.steps.verification import verify_run

    with connected(run) as connection:
        is_sound, problems = verify_run(
            run,
            connection,
            chosen,
            sample=given.sample,
            recompute=(lambda name: launch_step(run, connection, name)) if given.repair else None,
        )
    if not given.step:
        trained, damaged = check_trainings(run)
        problems += damaged
        for name in trained:
            print(f"verify: {name}: the network is sound.")
    if problems := list(dict.fromkeys(problems)):
        again = run.command("verify", "--repair")
        if not is_sound and given.repair:
            print(f"verify: not everything could be repaired. Do what the next lines say, then run '{again}' again.")
        elif not is_sound:
            print(f"verify: to repair the damaged units, run '{again}'.")
        for problem in problems[:-1]:
            print(f"verify: {problem}")
        raise ValueError(problems[-1])
    if not is_sound:
        raise ValueError(f"verify: the run is damaged. Run '{run.command('verify', '--repair')}'.")
    if given.recompute:
        outdated = outdated_steps(run)
        for name in (name for name in chosen if name in outdated):
            again = run.step_command(name, "--restart", name)
            print(f"verify: {name}: not computed again, because it is outdated; to redo it: {again}")
        started = [name for name in chosen if run.step(name).fingerprint() is not None and name not in outdated]
        with connect("in-process") as here:
            found = [recompute_step(run, here, name, given.recompute, job_maker(name)) for name in started]
        print("\n".join(line for each in found for line in each.lines))
        if any(each.differing for each in found):
            raise ValueError(
                "verify: this machine computes other results than those stored, although the stored bytes are intact. "
                "The versions of packages, the processor or the code differ."
            )


if __name__ == "__main__":
    run_main(main)
