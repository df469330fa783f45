#!/bin/busybox sh
# What runs inside the guest: the engine on cgroup v2, checked by its own verbs
# and by what the kernel says. Prints PASS or FAIL a line, and powers off.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /sys/fs/cgroup
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /tmp
for module in virtio_pci virtio_blk ext4 overlay veth bridge nf_tables nft_chain_nat nft_nat nft_masq nft_ct nft_fib_inet nft_reject_inet; do
    modprobe "$module" 2>/dev/null
done
ip link set lo up

check() { # check NAME COMMAND…: the command succeeds
    name=$1
    shift
    if "$@" > /tmp/out 2>&1; then echo "PASS $name"; else echo "FAIL $name"; sed 's/^/     /' /tmp/out; fi
}
prints() { # prints NAME WANTED COMMAND…: the command's output is WANTED
    name=$1 wanted=$2
    shift 2
    got=$("$@" 2>&1 | tr -d '\r')
    if [ "$got" = "$wanted" ]; then echo "PASS $name"; else echo "FAIL $name: wanted '$wanted', got '$got'"; fi
}

uname -r
cat /sys/fs/cgroup/cgroup.controllers
mkdir -p /srv
mount -t ext4 /dev/vda /srv
mkdir -p /srv/e
mkfifo /tmp/up
gantry up --root /srv/e > /tmp/up 2>/tmp/up.log &
up=$!
while read -r line; do
    echo "$line"
    case $line in *"is up"*) break ;; esac
done < /tmp/up
cat /tmp/up > /dev/null &
export GANTRY_ROOT=/srv/e

mkdir -p /tmp/image/bin /tmp/image/etc /tmp/image/tmp
cp /bin/busybox /tmp/image/bin/busybox
for applet in sh true cat sleep echo id dd tail grep mknod wc head stat touch chown tr sed ip; do ln -s busybox "/tmp/image/bin/$applet"; done
cp /etc/passwd /etc/group /tmp/image/etc/
tar -C /tmp/image -cf /tmp/image.tar .
check "import" gantry import /tmp/image.tar bb

prints "the engine sees version 2" "2" gantry info --format '{{.CgroupVersion}}'
prints "run" "hello" gantry run --rm --network none bb echo hello
prints "run on the bridge" "hello" gantry run --rm bb echo hello
gantry run --rm --network none bb sh -c 'exit 7'; code=$?
prints "exit code" 7 echo "$code"

gantry run -d --name limits --network none -m 64m --cpus 0.5 --pids-limit 33 bb sleep 1000 > /tmp/id
group=$(find /sys/fs/cgroup -type d -name "$(cat /tmp/id)*" | head -n 1)
echo "cgroup $group"
prints "memory.max" 67108864 cat "$group/memory.max"
prints "cpu.max" "50000 100000" cat "$group/cpu.max"
prints "pids.max" 33 cat "$group/pids.max"
prints "exec is in the cgroup" 0 gantry exec limits sh -c 'kill -0 $$; echo $?'
check "pause" gantry pause limits
prints "frozen" 1 sh -c "grep -c 'frozen 1' $group/cgroup.events"
check "unpause" gantry unpause limits
check "rm -f" gantry rm -f limits
check "no cgroup is left" test ! -e "$group"

gantry run -d --name shares --network none --cpu-shares 2048 --cpu-period 50000 --cpu-quota 20000 -m 64m --memory-swap 96m bb sleep 1000 > /tmp/id
group=$(find /sys/fs/cgroup -type d -name "$(cat /tmp/id)*" | head -n 1)
prints "shares become a weight" 174 cat "$group/cpu.weight"
check "a new period" gantry update --cpu-period 40000 shares
prints "a period keeps its quota" "20000 40000" cat "$group/cpu.max"
[ ! -e "$group/memory.swap.max" ] || prints "swap is counted without memory" 33554432 cat "$group/memory.swap.max"
check "rm -f of it" gantry rm -f shares

# A container that hands out controllers: its own group takes no process any more.
gantry run -d --name hands --network none --privileged bb sh -c '
    cd /sys/fs/cgroup && busybox mkdir leaf && echo 1 > leaf/cgroup.procs &&
        echo +memory > cgroup.subtree_control && echo handed out && exec sleep 1000' > /dev/null
mkfifo /tmp/said
gantry logs -f hands > /tmp/said &
read -r said < /tmp/said
kill $!
prints "controllers are handed out" "handed out" echo "$said"
prints "exec is where the first process is" "0::/leaf" gantry exec hands cat /proc/self/cgroup
check "rm -f of that" gantry rm -f hands

gantry run --name hog --network none -m 16m --memory-swap 16m bb sh -c 'tail /dev/zero'; code=$?
prints "out of memory ends with 137" 137 echo "$code"
prints "out of memory is seen" true gantry inspect --format '{{.State.OOMKilled}}' hog
check "rm" gantry rm hog

gantry run --rm --network none --cap-add MKNOD bb sh -c 'mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg' > /tmp/out 2>&1
prints "the device filter denies what is not listed" 1 sh -c 'grep -c "not permitted" /tmp/out'
prints "the device filter allows null" 0 gantry run --rm --network none bb sh -c 'echo x > /dev/null; echo $?'

gantry run -d --name own --userns auto -m 64m -v data:/data bb sleep 1000 > /tmp/id
group=$(find /sys/fs/cgroup -type d -name "$(cat /tmp/id)*" | head -n 1)
prints "users of its own" "0 0 1879048192" gantry exec own sh -c 'echo $(id -u) $(head -n 1 /proc/self/uid_map | while read a b c; do echo $a $b; done)'
prints "files of their own" "0 1 0" gantry exec own sh -c 'touch /new /data/new; chown 1 /data/new; for file in /bin/sh /data/new /new; do stat -c %u $file; done | tr "\n" " " | sed "s/ $//"'
prints "a volume has the ids inside" 1 gantry run --rm --network none -v data:/data bb stat -c %u /data/new
prints "its group is limited" 67108864 cat "$group/memory.max"
prints "its processes are in the group" 1 sh -c "wc -l < $group/cgroup.procs"
prints "it sees its own group alone" "0::/" gantry exec own cat /proc/1/cgroup
prints "its network is its own to set up" 0 gantry run --rm --userns auto --cap-add NET_ADMIN bb sh -c 'ip link set lo mtu 1000; echo $?'
check "rm of it" gantry rm -f own
check "no cgroup of it is left" test ! -e "$group"

kill -TERM $up
wait $up
prints "nothing is left in the hierarchy" "" find /sys/fs/cgroup/gantry -mindepth 1 -type d
tail -n 20 /tmp/up.log
echo "GUEST DONE"
poweroff -f
