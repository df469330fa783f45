//! Endpoints, addresses, and the bridge.

use std::collections::HashSet;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use gantry_network::endpoint::{EndpointRequest, Users};
use gantry_network::network::Network;
use gantry_network::{NetworkError, StartError};

use crate::world::{
    BRIDGE, HOST, LIMIT, OUTSIDE, ask_tcp, container, exists, inside, is_unreachable, link_names,
    on_a_host, output, request, run, serve, serve_tcp, within,
};

#[test]
fn two_endpoints_reach_each_other_and_the_host_reaches_both() {
    on_a_host(|world| {
        let network = world.network();
        let one = network.create(request("one")).unwrap();
        let two = network.create(request("two")).unwrap();
        serve_tcp(&one, 80);
        serve_tcp(&two, 80);
        let seen = within(&one, || ask_tcp(two.address, 80).unwrap());
        assert_eq!(seen, one.address.to_string());
        let seen = within(&two, || ask_tcp(one.address, 80).unwrap());
        assert_eq!(seen, two.address.to_string());
        assert_eq!(ask_tcp(one.address, 80).unwrap(), one.gateway.to_string());
        drop(network);
        // Endpoints outlive a stop.
        assert_eq!(ask_tcp(two.address, 80).unwrap(), two.gateway.to_string());
        let network = world.network();
        assert_eq!(network.list(), [one, two]);
        for name in ["one", "two"] {
            assert!(network.delete(&container(name)).unwrap());
        }
    });
}

#[test]
fn an_endpoint_has_what_it_says() {
    on_a_host(|world| {
        let network = world.network();
        let endpoint = network.create(request("c")).unwrap();
        let link = within(&endpoint, || output("ip -o link show eth0"));
        assert!(link.contains("UP"), "{link}");
        let last = endpoint.address.octets()[3];
        assert!(
            link.contains(&format!("02:42:0a:42:00:{last:02x}")),
            "{link}"
        );
        assert_eq!(endpoint.mac, [0x02, 0x42, 10, 66, 0, last]);
        let addresses = within(&endpoint, || output("ip -o address"));
        let address = format!("inet {}/16", endpoint.address);
        assert!(addresses.contains(&address), "{addresses}");
        assert!(!addresses.contains("inet6 fe80"), "{addresses}");
        let routes = within(&endpoint, || output("ip route"));
        assert!(
            routes.contains("default via 10.66.0.1 dev eth0"),
            "{routes}"
        );
        let loopback = within(&endpoint, || output("ip -o link show lo"));
        assert!(loopback.contains("UP"), "{loopback}");
        assert!(!endpoint.servers.is_empty());
        assert_eq!(network.get(&container("c")), Some(endpoint));
        assert_eq!(network.overview().addresses_used, 1);
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn a_namespace_that_other_users_own_is_pinned_with_them_and_goes_with_them() {
    on_a_host(|world| {
        let network = world.network();
        let map = "0 1000000 65536\n";
        let wanted = EndpointRequest {
            users: Some(Users {
                uids: map.to_owned(),
                gids: map.to_owned(),
            }),
            ..request("c")
        };
        let endpoint = network.create(wanted).unwrap();
        let pin = endpoint.user_namespace.clone().unwrap();
        // Who enters those users may set up what the namespace has, and nobody else's.
        let enter = |namespace: &Path| {
            let user = format!("--user={}", pin.display());
            let net = format!("--net={}", namespace.display());
            Command::new("nsenter")
                .args([&user, &net, "ip", "link", "set", "lo", "mtu", "1000"])
                .status()
                .unwrap()
                .success()
        };
        assert!(enter(&endpoint.namespace));
        let other = network.create(request("other")).unwrap();
        assert_eq!(other.user_namespace, None);
        assert!(!enter(&other.namespace));
        serve_tcp(&other, 80);
        let seen = within(&endpoint, || ask_tcp(other.address, 80).unwrap());
        assert_eq!(seen, endpoint.address.to_string());
        drop(network);
        let network = world.network();
        assert_eq!(network.get(&container("c")), Some(endpoint));
        for name in ["c", "other"] {
            assert!(network.delete(&container(name)).unwrap());
        }
        assert!(network.settled(Duration::from_secs(20)));
        assert!(!pin.exists());
    });
}

#[test]
fn a_hardware_address_is_as_asked_for_also_where_a_ready_endpoint_has_the_address() {
    on_a_host(|world| {
        let network = world.network();
        let address = network.create(request("first")).unwrap().address;
        network.delete(&container("first")).unwrap();
        assert!(network.settled(Duration::from_secs(20)));
        let wanted = EndpointRequest {
            mac: Some([2, 0, 0, 0, 0, 7]),
            address: Some(Ipv4Addr::from(u32::from(address) + 1)),
            ..request("c")
        };
        let endpoint = network.create(wanted).unwrap();
        assert_eq!(endpoint.mac, [2, 0, 0, 0, 0, 7]);
        let link = within(&endpoint, || output("ip -o link show eth0"));
        assert!(link.contains("link/ether 02:00:00:00:00:07"), "{link}");
        let other = network.create(request("other")).unwrap();
        serve_tcp(&other, 80);
        let seen = within(&endpoint, || ask_tcp(other.address, 80).unwrap());
        assert_eq!(seen, endpoint.address.to_string());
        drop(network);
        let network = world.network();
        assert_eq!(network.get(&container("c")), Some(endpoint));
        for name in ["c", "other"] {
            assert!(network.delete(&container(name)).unwrap());
        }
    });
}

#[test]
fn mappings_that_the_kernel_refuses_leave_nothing() {
    on_a_host(|world| {
        let network = world.network();
        let wanted = EndpointRequest {
            users: Some(Users {
                uids: "0 1 0\n".to_owned(),
                gids: "0 1 1\n".to_owned(),
            }),
            ..request("c")
        };
        let error = network.create(wanted).unwrap_err();
        let chain = gantry_kit::fault::chain(&error);
        assert!(chain.contains("user namespace"), "{chain}");
        assert!(network.get(&container("c")).is_none());
        network.create(request("c")).unwrap();
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn a_container_reaches_outside_under_the_hosts_address() {
    on_a_host(|world| {
        let network = world.network();
        let endpoint = network.create(request("c")).unwrap();
        let listener = inside(&world.outside, || TcpListener::bind((OUTSIDE, 80)).unwrap());
        serve(listener);
        let seen = within(&endpoint, || ask_tcp(OUTSIDE, 80).unwrap());
        assert_eq!(seen, HOST.to_string());
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn what_is_not_published_is_not_reached_from_outside() {
    on_a_host(|world| {
        let network = world.network();
        let endpoint = network.create(request("c")).unwrap();
        serve_tcp(&endpoint, 80);
        inside(&world.outside, || {
            run(&format!("ip route add 10.66.0.0/16 via {HOST}"));
            assert!(is_unreachable(endpoint.address, 80));
        });
        // The host itself does reach it, so the server is there.
        ask_tcp(endpoint.address, 80).unwrap();
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn a_container_does_not_reach_the_hosts_loopback() {
    on_a_host(|world| {
        let network = world.network();
        let endpoint = network.create(request("c")).unwrap();
        serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 7777)).unwrap());
        ask_tcp(Ipv4Addr::LOCALHOST, 7777).unwrap();
        within(&endpoint, || {
            // A container with CAP_NET_ADMIN can route it to the bridge.
            run("ip address del 127.0.0.1/8 dev lo");
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
            run(&format!(
                "ip route add 127.0.0.1/32 via 10.66.0.1 dev eth0 src {}",
                endpoint.address
            ));
            assert!(is_unreachable(Ipv4Addr::LOCALHOST, 7777));
        });
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn a_container_has_one_endpoint_and_deleting_it_twice_is_no_error() {
    on_a_host(|world| {
        let network = world.network();
        let endpoint = network.create(request("c")).unwrap();
        assert!(matches!(
            network.create(request("c")),
            Err(NetworkError::EndpointExists { .. })
        ));
        assert_eq!(network.list(), [endpoint]);
        assert!(network.delete(&container("c")).unwrap());
        assert!(!network.delete(&container("c")).unwrap());
        assert_eq!(network.get(&container("c")), None);
    });
}

#[test]
fn a_deleted_endpoint_is_gone_even_while_a_process_holds_its_namespace() {
    on_a_host(|world| {
        let network = world.network();
        let endpoint = network.create(request("c")).unwrap();
        let held = File::open(&endpoint.namespace).unwrap();
        network.delete(&container("c")).unwrap();
        assert!(network.settled(LIMIT));
        assert!(!exists(&endpoint.namespace));
        let inner = inside(&held, || output("ip -o link"));
        assert!(!inner.contains("eth0"), "{inner}");
    });
}

#[test]
fn addresses_run_out_with_a_clear_error_and_come_back() {
    on_a_host(|world| {
        // Five addresses beside the gateway's; the ready ones count.
        let network = Network::start(world.wanted(|config| {
            config.subnet = Some("10.99.0.0/29".parse().unwrap());
        }))
        .unwrap();
        let names = ["a", "b", "c", "d", "e"];
        let addresses: HashSet<_> = names
            .iter()
            .map(|name| network.create(request(name)).unwrap().address)
            .collect();
        assert_eq!(addresses.len(), 5);
        let error = network.create(request("f")).unwrap_err();
        assert!(
            matches!(error, NetworkError::PoolExhausted { total: 5, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("10.99.0.0/29"), "{error}");
        network.delete(&container("b")).unwrap();
        network.create(request("f")).unwrap();
        for name in ["a", "c", "d", "e", "f"] {
            network.delete(&container(name)).unwrap();
        }
    });
}

#[test]
fn a_released_address_is_used_last_also_after_a_restart() {
    on_a_host(|world| {
        let settings = || {
            world.wanted(|config| {
                config.subnet = Some("10.99.0.0/29".parse().unwrap());
                config.warm_pool = 0;
            })
        };
        let network = Network::start(settings()).unwrap();
        let last =
            |network: &Network, name| network.create(request(name)).unwrap().address.octets()[3];
        assert_eq!((last(&network, "a"), last(&network, "b")), (2, 3));
        network.delete(&container("b")).unwrap();
        assert!(network.settled(LIMIT));
        network.delete(&container("a")).unwrap();
        assert!(network.settled(LIMIT));
        drop(network);
        let network = Network::start(settings()).unwrap();
        let next: Vec<u8> = ["c", "d", "e", "f", "g"]
            .map(|name| last(&network, name))
            .to_vec();
        assert_eq!(next, [4, 5, 6, 3, 2]);
        for name in ["c", "d", "e", "f", "g"] {
            network.delete(&container(name)).unwrap();
        }
    });
}

#[test]
fn an_address_can_be_asked_for_once() {
    on_a_host(|world| {
        let network = world.network();
        let wanted = |name, last| {
            let mut request = request(name);
            request.address = Some(Ipv4Addr::new(10, 66, 0, last));
            network.create(request)
        };
        let endpoint = wanted("a", 77).unwrap();
        assert_eq!(endpoint.address, Ipv4Addr::new(10, 66, 0, 77));
        assert!(matches!(
            wanted("b", 77),
            Err(NetworkError::AddressInUse { .. })
        ));
        assert!(matches!(
            wanted("b", 1),
            Err(NetworkError::AddressOutside { .. })
        ));
        // One that a ready endpoint has can be had as well.
        assert!(network.settled(LIMIT));
        assert_eq!(wanted("b", 3).unwrap().address, Ipv4Addr::new(10, 66, 0, 3));
        network.delete(&container("a")).unwrap();
        assert!(network.settled(LIMIT));
        wanted("c", 77).unwrap();
        for name in ["b", "c"] {
            network.delete(&container(name)).unwrap();
        }
    });
}

#[test]
fn a_subnet_that_the_host_uses_is_refused_and_nothing_is_changed() {
    on_a_host(|world| {
        let before = link_names();
        let error = Network::start(world.wanted(|config| {
            config.subnet = Some("192.0.2.0/25".parse().unwrap());
        }))
        .unwrap_err();
        assert!(matches!(error, StartError::Overlap { .. }));
        assert_eq!(
            error.to_string(),
            "subnet 192.0.2.0/25 overlaps the route 192.0.2.0/24 of uplink; configure another [network] subnet"
        );
        assert_eq!(link_names(), before);
        assert!(!exists(&world.root.path().join("run/network")));
        assert_eq!(output("nft list ruleset"), "");
    });
}

#[test]
fn a_link_that_is_no_bridge_is_refused() {
    on_a_host(|world| {
        let error = Network::start(world.wanted(|config| config.bridge = "uplink".to_owned()));
        assert!(matches!(error, Err(StartError::NotABridge { .. })));
    });
}

#[test]
fn a_bridge_that_was_there_is_adopted_and_stays() {
    on_a_host(|world| {
        run(&format!("ip link add {BRIDGE} type bridge"));
        let network = world.network();
        let endpoint = network.create(request("c")).unwrap();
        serve_tcp(&endpoint, 80);
        ask_tcp(endpoint.address, 80).unwrap();
        network.delete(&container("c")).unwrap();
        drop(network);
        assert!(link_names().contains(&BRIDGE.to_owned()));
        run(&format!("ip link del {BRIDGE}"));
    });
}

#[test]
fn a_bridge_that_somebody_removes_comes_back_with_the_next_endpoint() {
    on_a_host(|world| {
        let network = world.network();
        let endpoint = network.create(request("c")).unwrap();
        serve_tcp(&endpoint, 80);
        assert!(network.settled(LIMIT));
        run(&format!("ip link del {BRIDGE}"));
        network.create(request("d")).unwrap();
        assert!(network.settled(LIMIT));
        let peer = network.get(&container("d")).unwrap();
        let seen = within(&peer, || ask_tcp(endpoint.address, 80).unwrap());
        assert_eq!(seen, peer.address.to_string());
        for name in ["c", "d"] {
            network.delete(&container(name)).unwrap();
        }
    });
}

#[test]
fn many_at_once_get_different_addresses_and_leave_nothing() {
    on_a_host(|world| {
        let network = world.network();
        thread::scope(|scope| {
            for worker in 0..8 {
                let network = &network;
                scope.spawn(move || {
                    for round in 0..8 {
                        let names = [0, 1].map(|part| format!("c-{worker}-{round}-{part}"));
                        let [one, two] = names
                            .each_ref()
                            .map(|name| network.create(request(name)).unwrap());
                        assert_ne!(one.address, two.address);
                        assert_ne!(one.namespace, two.namespace);
                        for name in &names {
                            assert!(network.delete(&container(name)).unwrap());
                        }
                    }
                });
            }
        });
        assert!(network.settled(LIMIT));
        assert_eq!(network.overview().addresses_used, 0);
        assert_eq!(world.pins().len(), 2);
    });
}
