//! Compiles the interfaces with protox, so that no `protoc` is needed, and
//! writes the descriptor set that server reflection serves.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost::Message as _;

/// Files as `package/file`.
const INTERFACES: [&str; 11] = [
    "gateway/gateway",
    "image/archive",
    "image/image",
    "image/snapshot",
    "image/store",
    "image/volume",
    "network/network",
    "registry/registry",
    "runtime/runtime",
    "shim/shim",
    "types/types",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=gantry");
    let files: Vec<String> = INTERFACES
        .iter()
        .filter_map(|name| name.split_once('/'))
        .map(|(package, file)| format!("gantry/{package}/v1/{file}.proto"))
        .collect();
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
