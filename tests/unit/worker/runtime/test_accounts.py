"""User and group words against passwd and group files."""

from __future__ import annotations

import pytest

from worker.runtime.lean.accounts import find_account

PASSWD = "# comment\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\nbad line\n"
GROUP = "root:x:0:\nweb:x:34:\nlogs:x:50:other,web\nkvm:x:60:web\n"


@pytest.mark.parametrize(
    ("user", "extra", "expected"),
    [
        ("", [], (0, 0, [0], "/root")),
        ("web", [], (33, 34, [34, 50, 60], "/srv")),
        ("33", ["70"], (33, 34, [34, 50, 60, 70], "/srv")),
        ("web:logs", [], (33, 50, [50], "/srv")),
        ("web:7", ["kvm"], (33, 7, [7, 60], "/srv")),
        ("999", [], (999, 0, [0], "/")),
        (":logs", [], (0, 50, [50], "/root")),
    ],
)
def test_found(user, extra, expected):
    account = find_account(user, extra, passwd=PASSWD, group=GROUP)
    assert (account.uid, account.gid, account.groups, account.home) == expected


@pytest.mark.parametrize(
    ("user", "extra", "message"),
    [
        ("nosuch", [], "unable to find user nosuch"),
        ("web:nosuch", [], "unable to find group nosuch"),
        ("web", ["nosuch"], "unable to find group nosuch"),
        ("4294967295", [], "must be in range"),
        ("-1", [], "unable to find user -1"),
    ],
)
def test_refused(user, extra, message):
    with pytest.raises(ValueError, match=message):
        find_account(user, extra, passwd=PASSWD, group=GROUP)


def test_without_files_only_numbers_work():
    assert find_account("5:6", [], passwd="", group="").gid == 6
    with pytest.raises(ValueError, match="unable to find user root"):
        find_account("root", [], passwd="", group="")
