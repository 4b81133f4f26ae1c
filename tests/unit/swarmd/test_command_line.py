"""The command line of swarmd: what it refuses itself, and what it hands on to the worker."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from swarmd.__main__ import main
from swarmd.children import MANAGER, WORKER, daemon_command
from swarmd.settings import DaemonSettings, make_paths


def test_subordinate_ids_of_nobody_are_refused_before_anything_starts(tmp_path: Path):
    directories = ("--state-dir", str(tmp_path / "s"), "--run-dir", str(tmp_path / "r"))
    done = CliRunner().invoke(main, [*directories, "--userns-remap", "nobody-of-that-name"])
    assert done.exit_code == 2
    assert "there is no user nobody-of-that-name" in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_the_worker_is_told_whose_ids_containers_get(tmp_path: Path):
    paths = make_paths(tmp_path / "s", tmp_path / "r")
    settings = DaemonSettings(paths=paths, hostname="node-1", userns_remap="box:media")
    assert "--userns-remap=box:media" in daemon_command(settings, WORKER)
    assert "--userns-remap=box:media" not in daemon_command(settings, MANAGER)
    plain = DaemonSettings(paths=paths, hostname="node-1")
    assert not [one for one in daemon_command(plain, WORKER) if "userns" in one]


def test_generic_resources_are_looked_at_here_and_handed_to_the_worker(tmp_path: Path):
    directories = ("--state-dir", str(tmp_path / "s"), "--run-dir", str(tmp_path / "r"))
    wishes = ("--generic-resource", "gpu=1", "--generic-resource", "gpu=UUID1")
    done = CliRunner().invoke(main, [*directories, *wishes])
    assert done.exit_code == 2
    assert "gpu is there already" in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []
    done = CliRunner().invoke(main, [*directories, "--generic-device", "gpu,/dev/null"])
    assert done.exit_code == 2
    assert "the node has no generic resource 'gpu'" in " ".join(done.output.split())
    settings = DaemonSettings(
        paths=make_paths(tmp_path / "s", tmp_path / "r"),
        hostname="node-1",
        generic_resources=("gpu=UUID1,gpu=UUID2", "apple=5"),
        generic_devices=("gpu,/dev/null",),
    )
    arguments = daemon_command(settings, WORKER)
    assert {"--generic-resource=gpu=UUID1,gpu=UUID2", "--generic-resource=apple=5"} <= {*arguments}
    assert "--generic-device=gpu,/dev/null" in arguments
