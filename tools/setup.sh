#!/usr/bin/env bash
# Makes a checkout usable: installs the Debian packages that are missing and makes .venv from
# constraints.txt. Does nothing when nothing changed, and needs root only to install packages.
# PYTHON=... chooses the interpreter of a new .venv (3.11 or later).
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/sbin:/sbin"
python="${PYTHON:-python3}"
stamp=.venv/.shoal-setup

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

missing_packages() {
  command -v "$python" >/dev/null || echo python3
  [ -x .venv/bin/python ] || "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  command -v ip >/dev/null || echo iproute2
  command -v nft >/dev/null || echo nftables
  { command -v nsenter && command -v unshare; } >/dev/null || echo util-linux
  command -v mount >/dev/null || echo mount
  static_busybox || echo busybox-static
  ldconfig -p 2>/dev/null | grep -q 'libseccomp\.so\.2' || echo libseccomp2
}

# The demo puts busybox alone into an image: it must need no libraries, and have the web server.
static_busybox() {
  command -v busybox >/dev/null && busybox httpd --help >/dev/null 2>&1 &&
    ! ldd "$(command -v busybox)" 2>/dev/null | grep -q '=>'
}

install_packages() {
  local packages
  packages="$(missing_packages | xargs)"
  [ -n "$packages" ] || return 0
  command -v apt-get >/dev/null || fail "missing: $packages (Debian's names); install them first"
  [ "$(id -u)" = 0 ] || fail "missing: $packages; run \`sudo make setup\` to install them"
  say "installing from Debian: $packages"
  apt-get update -qq
  # shellcheck disable=SC2086 # one word per package
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
}

wanted_stamp() {
  cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1
}

make_venv() {
  if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(wanted_stamp)" ]; then
    return 0
  fi
  if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      fail "$("$python" --version) is too old: 3.11 or later is needed; choose one with PYTHON=..."
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
  fi
  say "installing Python packages as pinned in constraints.txt"
  PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt .venv/bin/python -m pip \
    install --quiet --disable-pip-version-check --editable '.[test,dev]'
  wanted_stamp >"$stamp"
}

install_packages
make_venv
