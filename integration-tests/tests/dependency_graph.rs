//! The workspace's members, and which of them may depend on which.
//!
//! Services meet through `gantry-proto` and never link each other: that is what
//! lets each be tested, restarted and replaced alone. This table is the map; a
//! change of it is a change of the architecture and wants a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Each member with the members that it depends on, for its build and tests
/// too.
const MAP: &[(&str, &[&str])] = &[
    ("gantry-archive", &[]),
    (
        "gantry-cli",
        &[
            "gantry-archive",
            "gantry-credentials",
            "gantry-kit",
            "gantry-oci",
            "gantry-proto",
            "gantry-sys",
        ],
    ),
    ("gantry-credentials", &[]),
    (
        "gantry-gateway",
        &["gantry-kit", "gantry-oci", "gantry-proto"],
    ),
    (
        "gantry-image",
        &[
            "gantry-archive",
            "gantry-credentials",
            "gantry-kit",
            "gantry-oci",
            "gantry-proto",
            "gantry-sys",
        ],
    ),
    ("gantry-integration-tests", &["gantry-kit", "gantry-proto"]),
    ("gantry-kit", &["gantry-proto", "gantry-sys"]),
    (
        "gantry-network",
        &["gantry-kit", "gantry-proto", "gantry-sys"],
    ),
    ("gantry-oci", &[]),
    ("gantry-proto", &[]),
    (
        "gantry-registry",
        &["gantry-kit", "gantry-oci", "gantry-proto"],
    ),
    (
        "gantry-runtime",
        &["gantry-archive", "gantry-kit", "gantry-proto", "gantry-sys"],
    ),
    // Packs the services into one file; it has no code of its own that they could share.
    (
        "gantry-services",
        &[
            "gantry-gateway",
            "gantry-image",
            "gantry-network",
            "gantry-registry",
            "gantry-runtime",
        ],
    ),
    ("gantry-shim", &["gantry-proto", "gantry-sys"]),
    ("gantry-sys", &[]),
];

/// The only member whose sources may hold `unsafe` code.
const UNSAFE: &str = "gantry-sys";

fn metadata() -> Result<Value> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("cargo")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {errors}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn members_depend_on_each_other_as_the_map_says_and_no_more() {
    let metadata = metadata().unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let members: BTreeSet<&str> = packages
        .iter()
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    let map: BTreeMap<&str, BTreeSet<&str>> = MAP
        .iter()
        .map(|(name, dependencies)| (*name, dependencies.iter().copied().collect()))
        .collect();
    assert_eq!(
        members,
        map.keys().copied().collect(),
        "the members of the workspace and of the map"
    );
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let beyond: Vec<&str> = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|dependency| dependency["name"].as_str().unwrap())
            .filter(|dependency| members.contains(dependency) && !map[name].contains(dependency))
            .collect();
        assert!(
            beyond.is_empty(),
            "{name} depends on {beyond:?}, which the map does not have"
        );
    }
}

#[test]
fn every_member_but_one_forbids_unsafe_code() {
    for package in metadata().unwrap()["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if name == UNSAFE {
            continue;
        }
        for target in package["targets"].as_array().unwrap() {
            let kinds: Vec<&str> = target["kind"]
                .as_array()
                .unwrap()
                .iter()
                .map(|kind| kind.as_str().unwrap())
                .collect();
            if !kinds.iter().any(|kind| ["bin", "lib"].contains(kind)) {
                continue;
            }
            let path = target["src_path"].as_str().unwrap();
            let source = std::fs::read_to_string(path).unwrap();
            assert!(
                source.contains("#![forbid(unsafe_code)]"),
                "{path} of {name} does not forbid unsafe code"
            );
        }
    }
}
