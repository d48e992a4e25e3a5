"""`python -m sandbox demo|tour|env|clean`: PayMe's world on this machine."""

import argparse
import shlex
import sys

from rich.console import Console

from payme_ops.foundation.errors import PaymeOpsError
from sandbox import demo, tour, world
from sandbox.postgres import ClusterError

_SHELL_PREFIXES = ("PAYME_OPS__", "PGSERVICEFILE", "PGPASSFILE", "AWS_")


def main() -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("demo", help="start everything, back up, show the proof, stay until Ctrl-C")
    run.add_argument("--once", action="store_true", help="stop everything after the proof")
    walk = verbs.add_parser("tour", help="one step of docs/tour.md")
    walk.add_argument("step", type=int, choices=sorted(tour.STEPS))
    walk.add_argument("--yes", action="store_true", help="wait for no person: approvals are answered, too")
    verbs.add_parser("env", help='print the running demo\'s variables for a shell: eval "$(python -m sandbox env)"')
    verbs.add_parser("clean", help="delete the demo's databases, objects, keys and logs")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    try:
        if arguments.verb == "demo":
            demo.demo(console, once=arguments.once)
        elif arguments.verb == "tour":
            tour.STEPS[arguments.step](console, arguments.yes or not sys.stdin.isatty())
        elif arguments.verb == "env":
            _print_environment()
        else:
            world.remove(demo.ROOT)
    except (PaymeOpsError, ClusterError) as error:
        Console(stderr=True, highlight=False).print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _print_environment() -> None:
    env = world.attach(demo.ROOT).env
    for name in sorted(env):
        if name.startswith(_SHELL_PREFIXES):
            print(f"export {name}={shlex.quote(env[name])}")


if __name__ == "__main__":
    sys.exit(main())
