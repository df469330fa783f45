//! Compiles the interfaces with protox, so that no `protoc` is needed, and
//! writes the descriptor set that server reflection serves.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost::Message as _;

const INTERFACES: [&str; 7] = [
    "gateway", "image", "network", "registry", "runtime", "shim", "types",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=gantry");
    let files: Vec<String> = INTERFACES
        .iter()
        .map(|name| format!("gantry/{name}/v1/{name}.proto"))
        .collect();
    let descriptors = protox::compile(&files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
