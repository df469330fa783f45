//! Engines side by side on one machine, told apart by their roots alone.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use gantry_network::StartError;
use gantry_network::endpoint::Protocol::Tcp;
use gantry_network::firewall::FirewallError;
use gantry_network::network::Network;

use crate::world::{
    BRIDGE, World, ask_tcp, container, link_names, on_a_host, output, port, request, run,
    serve_tcp, within,
};

fn root(world: &World, name: &str) -> PathBuf {
    let root = world.root.path().join(name);
    std::fs::create_dir_all(&root).unwrap();
    root
}

fn engine(world: &World, name: &str) -> Network {
    Network::start(world.wanted_below(&root(world, name), |_| {})).unwrap()
}

/// A container that serves on port 80, published as `number`.
fn publish(network: &Network, name: &str, number: u16) -> gantry_network::endpoint::Endpoint {
    let mut wanted = request(name);
    wanted.ports = vec![port(Tcp, Some(number), 80)];
    let endpoint = network.create(wanted).unwrap();
    serve_tcp(&endpoint, 80);
    ask_tcp(Ipv4Addr::LOCALHOST, number).unwrap();
    endpoint
}

#[test]
fn engines_that_differ_in_their_roots_alone_run_side_by_side_and_end_alone() {
    on_a_host(|world| {
        let (one, two) = (engine(world, "one"), engine(world, "two"));
        let (first, second) = (one.overview(), two.overview());
        assert_ne!(first.bridge, second.bridge);
        assert!(
            !first
                .subnet
                .overlaps(second.subnet.network(), second.subnet.prefix())
        );
        let a = publish(&one, "a", 8001);
        let b = publish(&two, "b", 8002);
        // The one's container reaches the other's by its published port only.
        let direct = within(&a, || crate::world::is_unreachable(b.address, 80));
        assert!(direct, "a container of another engine is reached directly");
        within(&a, || ask_tcp(second.gateway, 8002).unwrap());

        one.delete(&container("a")).unwrap();
        drop(one);
        assert!(!link_names().contains(&first.bridge));
        assert!(link_names().contains(&second.bridge));
        ask_tcp(Ipv4Addr::LOCALHOST, 8002).unwrap();
        publish(&two, "c", 8003);

        // Again under the same names.
        let one = engine(world, "one");
        assert_eq!(one.overview(), first);
        ask_tcp(Ipv4Addr::LOCALHOST, 8002).unwrap();
        for name in ["b", "c"] {
            two.delete(&container(name)).unwrap();
        }
    });
}

#[test]
fn a_bridge_or_table_of_another_engine_is_refused_by_name_and_nothing_is_changed() {
    on_a_host(|world| {
        let own = world.network();
        let endpoint = publish(&own, "a", 8001);
        assert!(own.settled(crate::world::LIMIT));
        let before = (output("nft list ruleset"), link_names());
        let other = root(world, "other");
        let refusal = |bridge: &str, table: &str| {
            let wanted = world.wanted_below(&other, |config| {
                config.bridge = bridge.to_owned();
                config.table = table.to_owned();
            });
            Network::start(wanted).unwrap_err()
        };
        let error = refusal(BRIDGE, "");
        assert!(matches!(error, StartError::BridgeOwned { .. }), "{error}");
        let name = world.root.path().display().to_string();
        for part in [BRIDGE, &name, "is running (pid ", "[network] bridge"] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
        // Another bridge, and the table of this one.
        let error = refusal("other0", &format!("gantry-{BRIDGE}"));
        assert!(
            matches!(error, StartError::Firewall(FirewallError::Owned { .. })),
            "{error}"
        );
        assert!(error.to_string().contains(&name), "{error}");
        assert_eq!((output("nft list ruleset"), link_names()), before);
        ask_tcp(Ipv4Addr::LOCALHOST, 8001).unwrap();

        // Also while the owner does not run, as its containers do.
        drop(own);
        let error = refusal(BRIDGE, "");
        assert!(error.to_string().contains("is not running"), "{error}");
        ask_tcp(Ipv4Addr::LOCALHOST, 8001).unwrap();
        let own = world.network();
        assert_eq!(own.list(), [endpoint]);
        own.delete(&container("a")).unwrap();
    });
}

#[test]
fn a_persons_table_is_never_replaced() {
    on_a_host(|world| {
        run("nft add table ip filter");
        run("nft add chain ip filter input");
        let wanted = world.wanted(|config| config.table = "filter".to_owned());
        let error = Network::start(wanted).unwrap_err();
        assert!(
            matches!(error, StartError::Firewall(FirewallError::Foreign { .. })),
            "{error}"
        );
        assert!(!link_names().contains(&BRIDGE.to_owned()));
        run("nft delete table ip filter");
    });
}

#[test]
fn what_a_version_without_marks_left_is_adopted_and_marked() {
    on_a_host(|world| {
        let network = world.network();
        let endpoint = publish(&network, "a", 8001);
        drop(network);
        // As such a version would have left it.
        run(&format!("ip link set {BRIDGE} alias "));
        let table = format!("gantry-{BRIDGE}");
        let rules = output(&format!("nft list table ip {table}"));
        assert!(rules.contains("comment \"gantry:/"), "{rules}");
        run(&format!("nft delete table ip {table}"));
        run(&format!("nft add table ip {table}"));
        run(&format!("nft add chain ip {table} guard"));
        std::fs::remove_file(world.root.path().join("lib/network/names")).unwrap();

        let network = world.network();
        assert_eq!(network.list(), [endpoint]);
        ask_tcp(Ipv4Addr::LOCALHOST, 8001).unwrap();
        assert_eq!(output(&format!("nft list table ip {table}")), rules);
        let link = output(&format!("ip link show {BRIDGE}"));
        assert!(link.contains("alias gantry:/"), "{link}");
        network.delete(&container("a")).unwrap();
    });
}

#[test]
fn what_is_left_of_an_engine_whose_root_is_gone_is_taken_over() {
    on_a_host(|world| {
        let gone = world.root.path().join("gone");
        run(&format!("ip link add {BRIDGE} type bridge"));
        run(&format!(
            "ip link set {BRIDGE} alias gantry:{}",
            gone.display()
        ));
        // While something hangs on it, somebody may come back for that.
        run("ip link add held type veth peer name peer");
        run(&format!("ip link set held master {BRIDGE}"));
        let error = Network::start(world.wanted(|_| {})).unwrap_err();
        assert!(matches!(error, StartError::BridgeOwned { .. }), "{error}");
        run("ip link del held");
        let network = world.network();
        publish(&network, "a", 8001);
        network.delete(&container("a")).unwrap();
        drop(network);
        // A person's bridge, as far as we can see: it stays, and is free again.
        let link = output(&format!("ip link show {BRIDGE}"));
        assert!(!link.contains("alias"), "{link}");
        run(&format!("ip link del {BRIDGE}"));
    });
}

#[test]
fn the_subnet_is_one_that_the_machine_does_not_use_and_stays_the_same() {
    on_a_host(|world| {
        let wanted = || world.wanted_below(world.root.path(), |_| {});
        let network = Network::start(wanted()).unwrap();
        let first = network.overview();
        let table = output("nft list tables");
        assert!(table.contains(&first.bridge), "{table}");
        let endpoint = network.create(request("a")).unwrap();
        drop(network);
        // Somebody takes it: it stays while there is an endpoint, and no longer.
        let address = format!("{}/32", first.gateway);
        run(&format!("ip address add {address} dev uplink"));
        let network = Network::start(wanted()).unwrap();
        assert_eq!(network.overview().subnet, first.subnet);
        assert_eq!(network.list(), [endpoint]);
        network.delete(&container("a")).unwrap();
        drop(network);
        let network = Network::start(wanted()).unwrap();
        let second = network.overview();
        assert_ne!(second.subnet, first.subnet);
        assert_eq!(second.bridge, first.bridge);
        drop(network);
        run(&format!("ip address del {address} dev uplink"));
        let network = Network::start(wanted()).unwrap();
        assert_eq!(network.overview().subnet, second.subnet);
    });
}
