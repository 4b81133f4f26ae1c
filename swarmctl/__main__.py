"""Entry point: `swarmctl` and `python -m swarmctl`."""

from __future__ import annotations

from swarmctl.cli import cli


def main() -> None:
    """Run the command line; exits the process."""
    cli(prog_name="swarmctl")


if __name__ == "__main__":
    main()
