#!/bin/bash
# Runs a public suite for OCI runtimes, which the caller has brought and built, against gantry-oci or another runtime.
#
#   run.sh contest DIR [RUNTIME]   youki's tests/contest; DIR has contest, runtimetest and bundle.tar.gz
#   run.sh crun DIR [RUNTIME]      crun's tests; DIR has tests/*.py and tests/init (its init.c, linked statically)
#
# Environment: OUT, where each group's output goes (a temporary directory); LIMIT, seconds for one group (300);
# GROUPS_WANTED, only these; HIDE_V2=1, for a runtime that takes no hybrid cgroups, hides version 2 from it.
#
# Everything runs in mount and network namespaces of its own, for the suites leave mounts behind. What is not ok and is not
# explained in docs/runtime.md (listed beside this script, *.known, *.v2.known on a machine with cgroup v2 alone) fails the
# run when the runtime is gantry-oci. guest.sh runs this in the emulated machine of ../cgroup-v2.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
suite=${1:?contest or crun} directory=$(cd "${2:?the directory of the suite}" && pwd)
runtime=$(command -v "${3:-gantry-oci}" || true)
[ -n "$runtime" ] || { echo "suite: there is no runtime ${3:-gantry-oci}" >&2; exit 2; }
runtime=$(realpath -s "$runtime")
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"

case $suite in
contest)
    for file in contest runtimetest bundle.tar.gz; do
        [ -e "$directory/$file" ] || { echo "suite: $directory has no $file" >&2; exit 2; }
    done ;;
crun)
    [ -x "$directory/tests/init" ] || { echo "suite: $directory/tests has no init: build its init.c" >&2; exit 2; } ;;
*)
    echo "suite: $suite is neither contest nor crun" >&2; exit 2 ;;
esac

export suite directory runtime out
# contest leaves out what youki cannot do, unless it is told that this is another.
[ "$(basename "$runtime")" != gantry-oci ] || export RUNTIME_KIND=gantry-oci
# Descriptors that were left open above here are not the suite's: it would find them in its containers.
for descriptor in $(ls /proc/$$/fd); do
    [ "$descriptor" -le 2 ] || [ "$descriptor" -eq 255 ] || eval "exec $descriptor>&-"
done
unshare --mount --net --propagation slave bash -euo pipefail -c '
    ip link set lo up
    [ -z "${HIDE_V2:-}" ] || umount /sys/fs/cgroup/unified
    cd "$directory"
    run() { # NAME COMMAND...
        local name=$1 code=0; shift
        timeout "${LIMIT:-300}" "$@" >"$out/$name.out" 2>"$out/$name.err" </dev/null || code=$?
        # A panic, or a group that hangs, says nothing of its tests.
        [ $code -le 1 ] || echo "not ok - $name did not finish (exit $code)" >>"$out/$name.out"
        echo -n . >&2
    }
    if [ $suite = contest ]; then
        for group in ${GROUPS_WANTED:-$(./contest list 2>/dev/null)}; do
            run "$group" ./contest run --runtime "$runtime" --runtimetest "$directory/runtimetest" -t "$group"
        done
    else
        export OCI_RUNTIME=$runtime INIT=$directory/tests/init
        for file in tests/test_*.py; do
            name=$(basename "$file" .py)
            [ -z "${GROUPS_WANTED:-}" ] || [[ " $GROUPS_WANTED " == *" $name "* ]] || continue
            run "$name" python3 "$file"
        done
    fi
'
echo >&2

# One line a test: "ok|not ok|skip GROUP NAME".
results() {
    local file group
    for file in "$out"/*.out; do
        group=$(basename "$file" .out)
        if [ "$suite" = contest ]; then
            sed -nE "s|^ *[0-9]+ / [0-9]+ : (.*) : (ok\|not ok\|skipped).*|\2 $group \1|p; s|^not ok - .*|not ok $group *|p" "$file" |
                sed 's/^skipped/skip/'
        else
            sed -nE "s|^ok [0-9]+ - ([^#]*).*#SKIP.*|skip $group \1|p; t; s|^(ok\|not ok) [0-9]+ - ([^#]*).*|\1 $group \2|p; s|^not ok - .*|not ok $group *|p" "$file" |
                sed 's/ *$//'
        fi
    done
}
results >"$out/results"
count() { grep -c "^$1 " "$out/results" || true; }
echo "$suite with $runtime: $(count ok) ok, $(count 'not ok') not ok, $(count skip) skipped (output: $out)"
grep '^not ok ' "$out/results" | sed 's/^not ok //' | sort >"$out/not-ok" || true
if [ "$(basename "$runtime")" = gantry-oci ]; then
    known=$suite.known
    [ ! -e /sys/fs/cgroup/cgroup.controllers ] || known=$suite.v2.known
    unknown=$(sed 's/#.*//; s/ *$//; /^$/d' "$here/$known" | sort | comm -13 - "$out/not-ok")
    if [ -n "$unknown" ]; then
        echo "not ok, and not known:"
        sed 's/^/  /' <<<"$unknown"
        exit 1
    fi
    echo "every 'not ok' is known and explained in docs/runtime.md"
else
    sed 's/^/  not ok: /' "$out/not-ok"
fi
