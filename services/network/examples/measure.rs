//! How long endpoints take: medians and 90th percentiles, as root.
//!
//! Runs in network and mount namespaces of its own, so that it touches nothing.
//! `cargo run --release -p gantry-network --example measure`

use std::time::{Duration, Instant};

use anyhow::Context as _;
use gantry_kit::paths::Paths;
use gantry_network::config::{Config, Wanted};
use gantry_network::endpoint::{ContainerId, EndpointRequest, PortRequest, Protocol};
use gantry_network::network::Network;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const ROUNDS: usize = 200;
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("are you root?")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    let root = tempfile::tempdir()?;

    let network = start(root.path(), 4)?;
    measure(&network, "warm", None)?;
    measure(&network, "warm, a port published", Some(Protocol::Tcp))?;
    // One after the other, as fast as it goes: the workers are the limit.
    let begin = Instant::now();
    for round in 0..ROUNDS {
        let container = container(&format!("row-{round}"))?;
        network.create(request(&container, None))?;
        network.delete(&container)?;
    }
    println!(
        "{:<28} {:?} each",
        "create and delete in a row",
        begin.elapsed() / ROUNDS as u32
    );
    drop(network);

    let network = start(root.path(), 0)?;
    measure(&network, "cold", None)
}

fn start(root: &std::path::Path, warm_pool: usize) -> anyhow::Result<Network> {
    let config = Config {
        bridge: "measure0".to_owned(),
        warm_pool,
        ..Config::default()
    };
    Ok(Network::start(Wanted::new(config, &Paths::under(root)?)?)?)
}

fn measure(network: &Network, what: &str, publish: Option<Protocol>) -> anyhow::Result<()> {
    let (mut creates, mut deletes) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        anyhow::ensure!(network.settled(LIMIT), "the workers do not come to rest");
        let container = container(&format!("c-{round}"))?;
        let request = request(&container, publish);
        let begin = Instant::now();
        network.create(request)?;
        creates.push(begin.elapsed());
        anyhow::ensure!(network.settled(LIMIT), "the workers do not come to rest");
        let begin = Instant::now();
        network.delete(&container)?;
        deletes.push(begin.elapsed());
    }
    for (verb, mut times) in [("create", creates), ("delete", deletes)] {
        times.sort();
        println!(
            "{:<28} median {:>10.1?}  90% {:>10.1?}",
            format!("{verb}, {what}"),
            times[ROUNDS / 2],
            times[ROUNDS * 9 / 10]
        );
    }
    Ok(())
}

fn container(name: &str) -> anyhow::Result<ContainerId> {
    Ok(ContainerId::try_from(name.to_owned())?)
}

fn request(container: &ContainerId, publish: Option<Protocol>) -> EndpointRequest {
    EndpointRequest {
        users: None,
        mac: None,
        container: container.clone(),
        names: Vec::new(),
        ports: publish
            .map(|protocol| PortRequest {
                host_address: std::net::Ipv4Addr::UNSPECIFIED,
                host_port: None,
                container_port: 80,
                protocol,
            })
            .into_iter()
            .collect(),
        address: None,
        ephemeral: true,
    }
}
