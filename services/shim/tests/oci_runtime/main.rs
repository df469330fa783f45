//! The OCI runtime with real containers, through the library and through `gantry-oci`. Needs root and a static
//! busybox (`/bin/busybox`, Debian's `busybox-static`).
//!
//! The library clones, which needs a process with one thread; so this test has no harness: `main` runs the
//! functions one after the other. Arguments that are no options choose tests by a part of their name.
//! After every test, nothing of it may be left: process, cgroup, mount or file.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking; its modules are nobody's interface"
)]

mod bundle;
mod command;
mod escape;
mod hooks;
mod library;
mod namespaces;
mod net_devices;
mod reaper;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test: its name, a sentence about behaviour, and what it does.
type Test = (&'static str, fn());

/// Names functions after themselves.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), $name as fn())),*]
    };
}

fn main() -> ExitCode {
    // What whoever runs this left open is not the caller's of these tests.
    gantry_sys::fd::close_on_exec_from(3).expect("close_range(2)");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let mut failed = Vec::new();
    let mut count = 0;
    for (name, test) in [
        library::TESTS,
        command::TESTS,
        hooks::TESTS,
        reaper::TESTS,
        namespaces::TESTS,
        net_devices::TESTS,
        escape::TESTS,
    ]
    .concat()
    {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        count += 1;
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(name);
        }
    }
    println!("{count} run, {} failed: {failed:?}", failed.len());
    if failed.is_empty() && count > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
