//! Times a container's way from create to delete, on a runtime service that
//! runs already:
//!
//! ```text
//! gantry-runtime --root /tmp/g &
//! cargo run --release --example start_path -- /tmp/g /path/to/a/root 100 [PROGRAM…]
//! ```
//! Prints medians in milliseconds, and the shim's own steps of the last round.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use gantry_kit::client;
use gantry_proto::runtime::v1 as wire;
use gantry_proto::types::v1 as types;
use serde_json::json;
use wire::runtime_service_client::RuntimeServiceClient;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = PathBuf::from(arguments.next().context("which --root?")?);
    let layer = arguments.next().context("which root file system?")?;
    let rounds: usize = arguments.next().context("how many rounds?")?.parse()?;
    let mut program: Vec<String> = arguments.collect();
    if program.is_empty() {
        program.push("/bin/true".to_owned());
    }
    let mut client = RuntimeServiceClient::new(client::connect(&root.join("run/runtime.sock")));
    let mut times: [Vec<f64>; 5] = Default::default();
    let mut steps = Vec::new();
    for round in 0..rounds {
        let id = format!("round-{}-{round}", std::process::id());
        let request = request(&root, &id, &layer, &program)?;
        let ready = Instant::now();
        let created = client.create(request).await?.into_inner();
        let create = ready.elapsed();
        client
            .start(wire::StartRequest {
                container_id: id.clone(),
            })
            .await?;
        let start = ready.elapsed();
        client
            .wait(wire::WaitRequest {
                container_id: id.clone(),
                exec_id: String::new(),
            })
            .await?;
        let exit = ready.elapsed();
        client
            .delete(wire::DeleteRequest {
                container_id: id,
                force: false,
                remove_log: true,
            })
            .await?;
        let delete = ready.elapsed();
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
        times[0].push(ms(create));
        times[1].push(ms(start - create));
        times[2].push(ms(exit - start));
        times[3].push(ms(delete - exit));
        times[4].push(ms(delete));
        steps = created.steps;
    }
    for (name, times) in ["create", "start", "exit", "delete", "all"]
        .iter()
        .zip(&mut times)
    {
        times.sort_by(f64::total_cmp);
        println!(
            "{name:8} median {:6.2} ms   best {:6.2} ms",
            times[times.len() / 2],
            times[0]
        );
    }
    let first = steps.first().map_or(0, |step| step.start_unix_nanos);
    for step in steps {
        println!(
            "  {:28} at {:8.3} ms for {:8.3} ms",
            step.name,
            (step.start_unix_nanos - first) as f64 / 1e6,
            step.duration_nanos as f64 / 1e6
        );
    }
    Ok(())
}

fn request(
    root: &Path,
    id: &str,
    layer: &str,
    program: &[String],
) -> anyhow::Result<wire::CreateRequest> {
    let writable = root.join("writable").join(id);
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    std::fs::create_dir_all(&upper)?;
    std::fs::create_dir_all(&work)?;
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": program,
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "hostname": id,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {
            "cgroupsPath": format!("/gantry-start-path/{id}"),
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"},
                {"type": "uts"}, {"type": "network"},
            ],
        },
    });
    Ok(wire::CreateRequest {
        container_id: id.to_owned(),
        spec: spec.to_string().into(),
        rootfs: Some(types::Rootfs {
            lower_dirs: vec![layer.to_owned()],
            upper_dir: upper.display().to_string(),
            work_dir: work.display().to_string(),
        }),
        ..Default::default()
    })
}
