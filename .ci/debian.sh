#!/usr/bin/env bash
# Installs the Debian packages that the whole test suite needs; what is there already is left alone.
# Works as root or with sudo. Without a package its tests skip, and say so; where CI=true they fail instead.
set -euo pipefail

packages=(
  openssl    # certificates and handshakes from outside
  prometheus # it scrapes us, and promtool judges /metrics (with systemd its server starts too: disable it)
  prometheus-alertmanager # it is told of alerts (as above)
  redis-server # one view of many hosts (as above)
)

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "debian.sh: run it as root, or install sudo, to get: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}
echo "debian.sh: installing ${missing[*]}"
apt update
apt install --yes --no-install-recommends "${missing[@]}"
