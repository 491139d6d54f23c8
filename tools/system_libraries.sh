#!/bin/sh
# Install the Debian packages that Open3D loads at import and draws with: as root directly, otherwise say what is missing.
set -eu

wanted="libusb-1.0-0 libgl1 libgomp1 libvulkan1 mesa-vulkan-drivers"

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "pcdet_ext: not a Debian system; Open3D needs the libraries of: $wanted" >&2
    exit 0
fi
missing=""
for package in $wanted; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "pcdet_ext: please have an administrator run: apt-get install$missing" >&2
    echo "pcdet_ext: going on without; simulation and Open3D pictures will fail until then" >&2
    exit 0
fi
echo "pcdet_ext: installing$missing"
apt-get update -qq
# shellcheck disable=SC2086 # the list is meant to be split
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
