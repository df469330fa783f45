//! `--init`: what the program and its orphans find when the container's first process is the engine's.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;

use gantry_shim::container::{Created, Stdio, Target};
use serde_json::json;

use crate::bundle::{Bundle, finish, read_all};
use crate::tests;

pub const TESTS: &[crate::Test] = tests![
    under_init_signals_are_at_their_defaults,
    the_program_has_its_variables_as_they_are_and_each_once,
    init_passes_every_signal_on_real_time_ones_too,
    init_reaps_orphans_and_ends_with_the_programs_code,
    init_ends_with_the_number_of_the_signal_that_ended_the_program,
    under_init_the_program_is_in_the_foreground_of_its_terminal,
];

fn with_init(script: &str) -> Bundle {
    let mut bundle = Bundle::script(script);
    bundle.config["annotations"] = json!({"dev.gantry.init": "true"});
    bundle
}

fn started(bundle: &Bundle) -> (Created, OwnedFd) {
    let (created, reader) = bundle.create(|_| {});
    let mut created = created.unwrap();
    created.container.start().unwrap();
    (created, reader)
}

fn under_init_signals_are_at_their_defaults() {
    let mut bundle = with_init("echo $$; exec grep -E '^Sig(Blk|Ign)' /proc/self/status");
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}]});
    assert_eq!(
        bundle.output(),
        "2\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
}

fn the_program_has_its_variables_as_they_are_and_each_once() {
    for mut bundle in [Bundle::script(""), with_init("")] {
        bundle.config["process"]["args"] = json!(["cat", "/proc/self/environ"]);
        let given = ["A=1", "PATH=/bin", "HOME=/", "Z=x=y", "A=2", "EMPTY=", "B"];
        bundle.config["process"]["env"] = json!(given);
        let output = bundle.output();
        let found: Vec<&str> = output.trim_end_matches('\0').split('\0').collect();
        assert_eq!(found, given[1..]);
    }
}

fn init_passes_every_signal_on_real_time_ones_too() {
    // Not those that nothing can catch, the one for ended children, and the two that the C library keeps.
    let signals: Vec<i32> = (1..=64)
        .filter(|signal| ![9, 17, 19, 32, 33].contains(signal))
        .collect();
    let list: Vec<String> = signals.iter().map(i32::to_string).collect();
    let bundle = with_init(&format!(
        "for s in {}; do trap \"echo $s\" $s; done; sleep 1000 & echo ready; while :; do wait; done",
        list.join(" ")
    ));
    let (created, reader) = started(&bundle);
    let mut lines = BufReader::new(File::from(reader)).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "ready");
    for signal in signals {
        created.container.kill(signal, Target::Init).unwrap();
        assert_eq!(next(), signal.to_string());
    }
    created.container.kill(9, Target::All).unwrap();
    finish(&created);
}

fn init_reaps_orphans_and_ends_with_the_programs_code() {
    // The orphan is gone only when its new parent, process 1, has reaped it.
    let bundle = with_init(
        "(sleep 0.1 & echo $! > /tmp/orphan); pid=$(cat /tmp/orphan); \
         while test -e /proc/$pid; do sleep 0.05; done; echo reaped; exit 6",
    );
    let (created, reader) = started(&bundle);
    assert_eq!(read_all(reader), "reaped\n");
    assert_eq!(finish(&created), (6, 0));
}

fn init_ends_with_the_number_of_the_signal_that_ended_the_program() {
    for signal in [15, 37, 64] {
        let bundle = with_init(&format!("kill -{signal} $$; sleep 1000"));
        let (created, _reader) = started(&bundle);
        assert_eq!(finish(&created), (128 + signal, 0));
    }
}

fn under_init_the_program_is_in_the_foreground_of_its_terminal() {
    let mut bundle = with_init("read word; echo got $word; trap 'exit 5' INT; echo ready; read x");
    bundle.config["process"]["terminal"] = json!(true);
    let (created, _reader) =
        bundle.create(|options| options.stdio = Stdio::Terminal { size: None });
    let mut created = created.unwrap();
    let mut master = File::from(created.terminal.take().unwrap());
    master.write_all(b"early\n").unwrap();
    created.container.start().unwrap();
    let mut shown = Vec::new();
    let mut buffer = [0; 256];
    while !String::from_utf8_lossy(&shown).contains("ready") {
        let length = master.read(&mut buffer).unwrap();
        shown.extend_from_slice(&buffer[..length]);
    }
    assert!(String::from_utf8_lossy(&shown).contains("got early"));
    // Ctrl-C.
    master.write_all(b"\x03").unwrap();
    assert_eq!(finish(&created), (5, 0));
}
