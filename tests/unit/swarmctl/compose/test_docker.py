"""Docker's own reading of Compose files is the oracle: `docker stack config` of the same files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shoal.model.specs import StackSpec
from swarmctl.compose.project import Source, load_project, project_spec
from tests.unit.swarmctl.compose.site import Site

pytestmark = pytest.mark.skipif(not shutil.which("docker"), reason="docker is missing")

BASE = """\
version: "3.13"
x-common: &common
  logging: {driver: json-file, options: {max-size: "10m"}}
services:
  web:
    <<: *common
    image: "nginx:${TAG:-1}"
    command: sh -c "echo $$HOME 'a b'"
    entrypoint: /e -x
    env_file: e.env
    environment: {A: 1, B: 1.5, C: , D: "yes", E: on, F: 0x10, G: 1e3}
    labels: [a=b, c]
    ports: ["8080:80", "53:53/udp", "9000-9001:9000-9001",
      {target: 443, published: 8443, mode: host}]
    volumes: ["data:/d:ro,nocopy", "./x:/x", /anon, {type: tmpfs, target: /m, tmpfs: {size: 1000}},
      {type: bind, source: ../y, target: /y, bind: {propagation: rshared}}, "./z/../w:/w"]
    secrets: [pw, {source: other, target: o, mode: 0440, uid: "5"}]
    configs: [{source: c, target: /c}]
    networks: {back: {aliases: [x]}, front: }
    depends_on: [db]
    dns: 1.1.1.1
    dns_search: [a, b]
    extra_hosts: ["h:1.2.3.4"]
    ulimits: {nofile: 10, nproc: {soft: 1, hard: 2}}
    sysctls: {a.b: 1}
    cap_add: [net_admin]
    healthcheck: {test: curl x, interval: 1m30s, retries: 3, start_period: 2s}
    stop_grace_period: 20s
    stop_signal: SIGINT
    init: true
    read_only: true
    user: "1:2"
    working_dir: /w
    deploy:
      replicas: 2
      endpoint_mode: dnsrr
      labels: {l: m}
      update_config: {parallelism: 2, delay: 10s, max_failure_ratio: 0.3, order: start-first}
      rollback_config: {failure_action: continue}
      resources:
        limits: {cpus: "0.5", memory: 64M, pids: 5}
        reservations: {generic_resources: [{discrete_resource_spec: {kind: gpu, value: 2}}]}
      restart_policy: {condition: on-failure, delay: 5s, max_attempts: 3, window: 120s}
      placement: {constraints: [node.role==manager], preferences: [{spread: node.labels.z}],
        max_replicas_per_node: 1}
  db: {image: db, deploy: {mode: global}}
networks:
  back: {driver: overlay, ipam: {config: [{subnet: 10.1.0.0/24}]}, labels: {n: l}}
  front: {attachable: true}
volumes: {data: {driver: local, driver_opts: {type: none, n: 5}, labels: [v=l]}}
secrets: {pw: {file: ./pw}, other: {external: true, name: theirs}}
configs: {c: {file: ./pw, template_driver: golang}}
"""
OVER = """\
version: "3.13"
services:
  web:
    image: other
    command: [new]
    environment: [A=2, N=x]
    labels: {a: z}
    ports: ["8081:80", {target: 81, published: 8080}]
    volumes: ["data2:/d", "/z:/z"]
    dns: [2.2.2.2]
    secrets: [{source: pw, target: third}]
    networks: [back, third]
    ulimits: {nofile: {soft: 5, hard: 6}}
    deploy: {replicas: 5, labels: [q=r], update_config: {parallelism: 1},
      placement: {constraints: [a==b]}}
    extra_hosts: ["k:1.1.1.1"]
    cap_add: [sys_time]
    healthcheck: {retries: 5}
    logging: {options: {max-size: 5m}}
networks: {third: , front: {internal: true}}
volumes: {data2: }
"""


class Directory(Site):
    """A real one, which docker reads as well."""

    def read_bytes(self, path: str) -> bytes:
        return Path(path).read_bytes()


def ours(directory: Path, *names: str, variables: bool = True) -> StackSpec:
    sources = [Source(name, (directory / name).read_text(), str(directory)) for name in names]
    project = load_project(sources, Directory(), variables=variables)
    return project_spec(project, "st", Directory()).replaced(source="")


def order_blind(spec: StackSpec) -> StackSpec:
    """Docker lists mounts in an order that changes from run to run."""

    def sorted_mounts(service):
        runtime = service.task.runtime
        mounts = tuple(sorted(runtime.mounts, key=lambda mount: mount.target))
        runtime = runtime.replaced(mounts=mounts)
        return service.replaced(task=service.task.replaced(runtime=runtime))

    return spec.replaced(services=tuple(map(sorted_mounts, spec.services)))


@pytest.mark.parametrize("names", [["a.yml"], ["a.yml", "b.yml"]])
def test_docker_reads_the_same(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "a.yml").write_text(BASE)
    (tmp_path / "b.yml").write_text(OVER)
    (tmp_path / "e.env").write_text("X=1\n# c\nY=a b\n")
    (tmp_path / "pw").write_text("content")
    files = [part for name in names for part in ("-c", str(tmp_path / name))]
    shown = subprocess.run(
        ["docker", "stack", "config", *files],
        capture_output=True, text=True, timeout=60, check=True,
        env={"PATH": "/usr/local/bin:/usr/bin"},
    )  # fmt: skip
    (tmp_path / "docker.yml").write_text(shown.stdout)
    theirs = ours(tmp_path, "docker.yml", variables=False)
    assert order_blind(ours(tmp_path, *names)) == order_blind(theirs)
