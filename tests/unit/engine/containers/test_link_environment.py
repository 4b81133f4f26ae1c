"""Variables about linked containers."""

from __future__ import annotations

from engine.containers.networking import link_environment


def test_everything_that_is_told():
    ports, env = ("5433/udp", "80", "5433/tcp"), ("PATH=/bin", "USER=me", "BARE", "URL=a=b")
    assert link_environment("web", "my-db", "172.17.0.2", ports, env) == (
        "MY_DB_PORT=tcp://172.17.0.2:80",
        "MY_DB_PORT_80_TCP=tcp://172.17.0.2:80",
        "MY_DB_PORT_80_TCP_ADDR=172.17.0.2",
        "MY_DB_PORT_80_TCP_PORT=80",
        "MY_DB_PORT_80_TCP_PROTO=tcp",
        "MY_DB_PORT_5433_TCP=tcp://172.17.0.2:5433",
        "MY_DB_PORT_5433_TCP_ADDR=172.17.0.2",
        "MY_DB_PORT_5433_TCP_PORT=5433",
        "MY_DB_PORT_5433_TCP_PROTO=tcp",
        "MY_DB_PORT_5433_UDP=udp://172.17.0.2:5433",
        "MY_DB_PORT_5433_UDP_ADDR=172.17.0.2",
        "MY_DB_PORT_5433_UDP_PORT=5433",
        "MY_DB_PORT_5433_UDP_PROTO=udp",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_USER=me",
        "MY_DB_ENV_URL=a=b",
    )


def test_nothing_exposed():
    assert link_environment("web", "db", "172.17.0.2", (), ()) == ("DB_NAME=/web/db",)
