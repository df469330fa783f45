//! Compiles `guest/guest.rs` into a static program and tells the crate where it
//! is. Not a binary target of this crate, because one crate's binaries cannot
//! be linked in two ways, and the C library's static part comes with the
//! toolchain's linker on every machine that can build this workspace.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest/guest.rs");
    let output = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("guest");
    let status = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-name", "guest"])
        .args([
            "-C",
            "opt-level=s",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        .args(["-C", "target-feature=+crt-static"])
        .arg("--target")
        .arg(env::var_os("TARGET").unwrap_or_default())
        .arg("-o")
        .arg(&output)
        .arg("guest/guest.rs")
        .status();
    match status {
        Ok(status) if status.success() => {
            println!("cargo::rustc-env=GANTRY_GUEST={}", output.display());
        }
        Ok(status) => {
            println!("cargo::error=guest/guest.rs does not compile: rustc ended with {status}");
        }
        Err(error) => println!("cargo::error=rustc cannot be run: {error}"),
    }
}
