#!/usr/bin/env bash
# Installs from Debian what bench/ compares Shoal with. Starts nothing: dockerd is started by the
# measurements, privately. A docker command elsewhere on PATH is left alone.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "bench-peers: run as root" >&2; exit 1; }
PATH="$PATH:/usr/sbin:/sbin"

missing=()
command -v dockerd >/dev/null || missing+=(docker.io)
command -v iptables >/dev/null || missing+=(iptables)
command -v crun >/dev/null || missing+=(crun)
command -v runc >/dev/null || missing+=(runc)
command -v etcd >/dev/null || missing+=(etcd-server)
command -v h2load >/dev/null || missing+=(nghttp2-client)
command -v dnsmasq >/dev/null || missing+=(dnsmasq-base)
[ "${#missing[@]}" -gt 0 ] || { echo "bench-peers: nothing is missing"; exit 0; }

echo "bench-peers: installing from Debian: ${missing[*]}"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then # refuse to start services for the length of the installation
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
