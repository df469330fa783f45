#!/bin/busybox sh
# What runs inside the guest of ../cgroup-v2/run.sh to put gantry-oci through youki's contest there. All that it needs is in
# /srv/files: this directory's run.sh and list, the suite, and programs of which busybox has not all options.
# GROUPS_WANTED and LIMIT on the kernel's command line (APPEND) are the environment of run.sh here.
/bin/busybox --install -s /bin
export PATH=/srv/files:/usr/bin:/bin HOME=/root TMPDIR=/srv/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /sys/fs/cgroup /srv
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /tmp
for module in virtio_pci virtio_blk ext4 overlay veth dummy; do
    modprobe "$module" 2>/dev/null
done
ip link set lo up
# A tmpfs of this kernel cannot be mounted id-mapped.
mount -t ext4 /dev/vda /srv
mkdir -p "$TMPDIR"
uname -r
cat /sys/fs/cgroup/cgroup.controllers

if OUT=/srv/out bash /srv/files/run.sh contest /srv/files gantry-oci; then
    echo "PASS contest"
else
    echo "FAIL contest"
fi
for group in $(sed -n 's/^not ok \([^ ]*\) .*/\1/p' /srv/out/results | sort -u); do
    echo "--- $group"
    cat "/srv/out/$group.out" "/srv/out/$group.err" | tail -n 20
done
echo "GUEST DONE"
poweroff -f
