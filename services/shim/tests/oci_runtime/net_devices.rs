//! `linux.netDevices`, from a network namespace that stands for the host's.

use std::process::{Command, Output};

use serde_json::json;

use crate::bundle::{Bundle, GANTRY_OCI};
use crate::tests;

pub const TESTS: &[crate::Test] = tests![
    a_device_moves_in_with_its_addresses_and_comes_up,
    the_kernel_numbers_a_device_whose_name_is_a_template,
    a_failed_creation_gives_a_device_back_as_it_was,
    a_device_that_cannot_move_is_named_and_nothing_is_changed,
];

/// A script in a network namespace of its own, which has one end of a pair: `out`, up and with addresses of all kinds.
/// `run` runs the bundle.
fn on_a_host(bundle: &Bundle, script: &str) -> Output {
    let text = serde_json::to_vec(&bundle.config).unwrap();
    std::fs::write(bundle.directory.path().join("config.json"), text).unwrap();
    let prelude = "
        set -e
        run() { $OCI --root $BUNDLE/state run -b $BUNDLE $ID </dev/null; }
        ip link add out mtu 1400 type veth peer name peer
        ip addr add 10.9.8.7/24 broadcast 10.9.8.255 label out:x dev out
        ip addr add 10.9.9.1 peer 10.9.9.2/32 dev out
        ip addr add 10.9.7.6/24 scope link dev out
        ip addr add fd00::7/64 nodad dev out
        ip addr add fd00::8/64 nodad valid_lft 1000 preferred_lft 1000 dev out
        ip link set out up
    ";
    Command::new("unshare")
        .args(["--net", "sh", "-c", &format!("{prelude}\n{script}")])
        .env("OCI", GANTRY_OCI)
        .env("BUNDLE", bundle.directory.path())
        .env("ID", &bundle.id)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn a_device_moves_in_with_its_addresses_and_comes_up() {
    let mut bundle = Bundle::script("ip addr show dev inside");
    bundle.config["linux"]["netDevices"] = json!({"out": {"name": "inside"}});
    let output = text(&on_a_host(&bundle, "run; ip -o link"));
    let has = |part: &str| assert!(output.contains(part), "{part}: {output}");
    // What is valid on the link alone or for a time stays behind.
    for part in [
        "mtu 1400",
        ",UP",
        "inet 10.9.8.7/24 brd 10.9.8.255 scope global inside:x\n",
        "inet 10.9.9.1 peer 10.9.9.2/32 scope global",
        "inet6 fd00::7/64 scope global",
    ] {
        has(part);
    }
    for part in ["10.9.7.6", "fd00::8", "out@"] {
        assert!(!output.contains(part), "{part}: {output}");
    }
}

fn the_kernel_numbers_a_device_whose_name_is_a_template() {
    let mut bundle = Bundle::script("ls /sys/class/net | tr '\\n' ' '");
    bundle.config["linux"]["netDevices"] =
        json!({"out": {"name": "eth%d"}, "peer": {"name": "eth%d"}});
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/sys");
    mounts.push(
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
    );
    assert_eq!(text(&on_a_host(&bundle, "run")), "eth0 eth1 lo ");
}

fn a_failed_creation_gives_a_device_back_as_it_was() {
    // The temporary address, which says how long it has left, is the host's to renew.
    let script = "
        state() { ip addr show dev out | grep -v -e fd00::8 -e valid_lft -e fe80 -e 'scope link' | sed 's/^[0-9]*: //'; }
        before=$(state)
        if run; then exit 9; fi
        [ \"$before\" = \"$(state)\" ] || { echo \"$before\"; state; exit 8; }
    ";
    for name in ["inside", "eth%d"] {
        let mut bundle = Bundle::new(&["no-such-program"]);
        bundle.config["linux"]["netDevices"] = json!({"out": {"name": name}});
        let output = on_a_host(&bundle, script);
        assert!(output.status.success(), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("executable file not found"), "{error}");
    }
}

fn a_device_that_cannot_move_is_named_and_nothing_is_changed() {
    let refused = |bundle: &Bundle, said: &str| {
        let script = "
            ip link add bridge type bridge
            ip addr > $BUNDLE/before
            if run; then exit 9; fi
            ip addr > $BUNDLE/after
        ";
        let output = on_a_host(bundle, script);
        assert!(output.status.success(), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(said), "{error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
        let read = |name: &str| {
            let text = std::fs::read_to_string(bundle.directory.path().join(name)).unwrap();
            // How long a temporary address has left.
            let lines = text.lines().filter(|line| !line.contains("valid_lft"));
            lines.map(|line| format!("{line}\n")).collect::<String>()
        };
        assert_eq!(read("before"), read("after"));
    };
    let mut bundle = Bundle::script("true");
    bundle.config["linux"]["netDevices"] = json!({"out": {}, "eth7": {}});
    refused(
        &bundle,
        "linux.netDevices.eth7: the host has no network device",
    );
    bundle.config["linux"]["netDevices"] = json!({"out": {"name": "a/b"}});
    refused(&bundle, "linux.netDevices.out: name \"a/b\"");
    bundle.config["linux"]["netDevices"] = json!({"bridge": {}});
    refused(&bundle, "linux.netDevices.bridge: a device of this kind");
    bundle.config["linux"]["netDevices"] = json!({"out": {}});
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|entry| entry["type"] != "network");
    refused(&bundle, "without a network namespace");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "network", "path": "/proc/self/ns/net"}));
    refused(&bundle, "is the host's own");
}
