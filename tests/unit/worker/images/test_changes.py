"""`--change` instructions."""

from __future__ import annotations

import pytest

from shoal.errors import InvalidArgument
from shoal.model.types import HealthCheck
from worker.images.changes import apply_changes
from worker.images.model import ImageConfig


def changed(*lines):
    return apply_changes(ImageConfig(), lines)


def test_everything_docker_import_accepts():
    config = changed(
        'CMD ["/bin/web", "-p"]',
        "entrypoint /start now",
        "ENV A=1 B=\"two words\" C='$A' D=$A-${B} E=${X:-none} F=${A:+set}",
        "ENV OLD the rest of it",
        "EXPOSE 80 443/tcp 53/udp 8000-8002",
        'LABEL a.b="c d" e=f\\ g',
        "USER 1000:1000",
        "WORKDIR /srv",
        "WORKDIR app/../data",
        "STOPSIGNAL SIGQUIT",
        'VOLUME ["/data", "/log"]',
        "HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f localhost",
    )
    assert config.cmd == ("/bin/web", "-p")
    assert config.entrypoint == ("/bin/sh", "-c", "/start now")
    assert config.env == (
        "A=1", "B=two words", "C=$A", "D=-", "E=none", "F=", "OLD=the rest of it",
    )  # fmt: skip
    assert config.exposed_ports == (
        "80/tcp", "443/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp",
    )  # fmt: skip
    assert config.labels == {"a.b": "c d", "e": "f g"}
    assert (config.user, config.working_dir) == ("1000:1000", "/srv/data")
    assert (config.stop_signal, config.volumes) == ("SIGQUIT", ("/data", "/log"))
    assert config.healthcheck == HealthCheck(
        test=("CMD-SHELL", "curl -f localhost"), interval_ns=90_000_000_000, retries=3
    )


def test_variables_come_from_earlier_lines():
    assert changed("ENV A=x", "ENV A=y B=$A", "USER ${A}").env == ("A=y", "B=x")
    assert changed("ENV A=x", "USER ${A}1").user == "x1"


def test_healthcheck_none():
    assert changed("HEALTHCHECK NONE").healthcheck == HealthCheck(test=("NONE",))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("RUN make", "RUN needs a build"),
        ("COPY a b", "COPY needs a build"),
        ("ONBUILD CMD x", "ONBUILD needs a build"),
        ("BOGUS x", "BOGUS is not an instruction"),
        ("", "an empty line"),
        ("CMD", "CMD requires an argument"),
        ("EXPOSE 70000", "1 to 65535"),
        ("EXPOSE web", "'web' is not PORT"),
        ("ENV A", "two arguments"),
        ("ENV A=1 B", "'B' is not KEY=VALUE"),
        ('LABEL a="b', "not closed"),
        ("STOPSIGNAL no!", "signal"),
        ("USER a b", "exactly one"),
        ("HEALTHCHECK --interval=soon CMD x", "--interval=soon"),
        ("HEALTHCHECK --color=red CMD x", "--color"),
        ("HEALTHCHECK PING x", "NONE or CMD"),
        ("USER ${A?x}", "not an expansion"),
    ],
)
def test_refusals_name_the_change(line, why):
    with pytest.raises(InvalidArgument, match="--change") as caught:
        changed(line)
    assert why in caught.value.message
