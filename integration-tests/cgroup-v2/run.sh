#!/usr/bin/env bash
# Runs the engine on a machine with a real cgroup v2 hierarchy: boots Debian's
# cloud kernel in QEMU (software emulation, no KVM needed) with an initramfs
# made of the engine's programs and a static busybox, and runs guest.sh in it.
#
#   integration-tests/cgroup-v2/run.sh BIN_DIR [WORK_DIR]
#
# BIN_DIR holds gantry, gantry-* (target/debug, say). WORK_DIR keeps the kernel
# between runs (default: target/cgroup-v2). Exit code 0: every check passed.
# Environment: GUEST, another script to run in the guest, as its first process; PROGRAMS, which of BIN_DIR go there (all
# of the engine's); FILES, programs, other files and
# directories to take there, which it finds by their names in /srv/files once it has mounted the disk on /srv;
# DISK_SIZE (512M); LIMIT_SECONDS (900).
# Needs root and the packages qemu-system-x86, cpio, kmod, busybox-static, e2fsprogs,
# which are installed where they are missing. Takes a few minutes: it is emulated.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:?usage: run.sh BIN_DIR [WORK_DIR]}" && pwd)
work=${2:-$here/../../target/cgroup-v2}
mkdir -p "$work"
work=$(cd "$work" && pwd)
limit_seconds=${LIMIT_SECONDS:-900}
guest=${GUEST:-$here/guest.sh}

missing=()
for pair in qemu-system-x86_64:qemu-system-x86 cpio:cpio depmod:kmod busybox:busybox-static mkfs.ext4:e2fsprogs; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

# The kernel is unpacked, not installed: nothing of the host changes.
if ! ls "$work"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')
    (cd "$work" && apt-get download -q "$package" && dpkg-deb -x "$package"_*.deb kernel)
fi
version=$(basename "$work"/kernel/boot/vmlinuz-*)
version=${version#vmlinuz-}

root=$work/root
rm -rf "$root"
mkdir -p "$root"/{bin,lib64,sbin,usr/bin,proc,sys,dev,tmp,run,etc,var,root,newroot,lib/modules/"$version"/kernel}
cp /bin/busybox "$root/bin/busybox" 2>/dev/null || cp "$(command -v busybox)" "$root/bin/busybox"
cp "$guest" "$root/guest.sh"
printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\n' > "$root/etc/passwd"
printf 'root:x:0:\ndaemon:x:1:\n' > "$root/etc/group"
for program in ${PROGRAMS:-gantry gantry-gateway gantry-image gantry-network gantry-oci gantry-registry gantry-runtime gantry-shim}; do
    strip -o "$root/usr/bin/$program" "$bin/$program"
done
files=$work/disk/files
rm -rf "$work/disk"
mkdir -p "$files"
for file in ${FILES:-}; do
    cp -rL "$file" "$files/"
done
find "$files" -type f -size +1M -perm -u+x -exec strip --strip-debug {} + 2>/dev/null || true
# What is no dynamic program is passed over.
{ ldd "$root"/usr/bin/*; find "$files" -type f -perm -u+x -exec ldd {} + 2>/dev/null || true; } | awk '/=> \// { print $3 } /^\t\/lib/ { print $1 }' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
modules=$work/kernel/lib/modules/$version
for part in kernel/fs/overlayfs kernel/fs/ext4 kernel/fs/jbd2 kernel/fs/mbcache.ko kernel/drivers/block/virtio_blk.ko \
    kernel/drivers/virtio kernel/net/bridge kernel/net/802 kernel/net/llc kernel/net/netfilter \
    kernel/net/ipv4/netfilter kernel/net/ipv6/netfilter kernel/drivers/net/{veth,dummy}.ko kernel/lib kernel/crypto \
    kernel/arch/x86/crypto; do
    [ -e "$modules/$part" ] || continue
    mkdir -p "$root/lib/modules/$version/$(dirname "$part")"
    cp -r "$modules/$part" "$root/lib/modules/$version/$(dirname "$part")/"
done
cp "$modules"/modules.{builtin,order} "$root/lib/modules/$version/"
depmod -b "$root" "$version"

# A container cannot pivot away from the initramfs itself, so the guest first
# moves to a tmpfs, as every initramfs does.
cat > "$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t tmpfs -o size=80% tmpfs /newroot
for entry in /*; do
    [ "$entry" = /newroot ] || /bin/busybox cp -a "$entry" /newroot/
done
exec /bin/busybox switch_root /newroot /bin/busybox sh /guest.sh
INIT
chmod +x "$root/init"
(cd "$root" && find . -print0 | cpio --null -o -H newc --quiet | gzip -1) > "$work/initramfs.gz"

# What the engine keeps is on a disk, as it is for people: a tmpfs of this kernel cannot be mounted id-mapped.
rm -f "$work/disk.img"
truncate -s "${DISK_SIZE:-512M}" "$work/disk.img"
PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q -d "$work/disk" "$work/disk.img"

log=$work/console.log
timeout "$limit_seconds" qemu-system-x86_64 -accel tcg,thread=multi -smp 2 -m 3072 -nographic -no-reboot \
    -kernel "$work/kernel/boot/vmlinuz-$version" -initrd "$work/initramfs.gz" -nic none \
    -drive "file=$work/disk.img,format=raw,if=virtio" \
    -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all ${APPEND:-}" </dev/null | tee "$log"
passed=$(grep -c '^PASS ' "$log" || true)
failed=$(grep -c '^FAIL ' "$log" || true)
echo "cgroup v2: $passed passed, $failed failed"
grep -q '^GUEST DONE' "$log" && [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
