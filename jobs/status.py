"""Prints the state of each step of a run: what is done, left and skipped, the speed, the storage, and running launches.

Reads the run and changes nothing. You can use it while jobs are running, on folders and on s3://. A driver renews its
heartbeat every 15 s. A step is "running" while the heartbeat of a driver is fresh. Stale heartbeats are printed too.
"""

import json
from dataclasses import asdict

from jobs.cli.command_line import Parser, run_main

EXAMPLES = """examples:
  python jobs/status.py --run s3://bucket/voc
  watch -n 30 python jobs/status.py --run /data/voc
  python jobs/status.py --run /data/voc --json
"""


def main(arguments: list[str]) -> None:
    parser = Parser(prog="status", description=f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--run", required=True, metavar="PATH", help="the run: a folder or an s3:// prefix")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
    given = parser.parse_args(arguments)

    from jobs.reporting.run_status import run_status, status_lines  # imports take a second, so --help does without
    from jobs.run.directory import open_run

    status = run_status(open_run(given.run))
    print(json.dumps(asdict(status), indent=1) if given.json else "\n".join(status_lines(status)))


if __name__ == "__main__":
    run_main(main)
