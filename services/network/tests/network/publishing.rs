//! Published ports and the firewall.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use gantry_network::NetworkError;
use gantry_network::endpoint::Protocol::{Tcp, Udp};
use gantry_network::ports::PortError;

use crate::world::{
    HOST, LIMIT, OUTSIDE, ask_tcp, ask_udp, container, eventually, inside, is_unreachable,
    on_a_host, output, port, request, run, serve_tcp, serve_udp, within,
};

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn a_published_port_is_reached_from_everywhere() {
    on_a_host(|world| {
        let network = world.network();
        let mut wanted = request("server");
        wanted.ports = vec![port(Tcp, Some(8080), 80)];
        let server = network.create(wanted).unwrap();
        let other = network.create(request("other")).unwrap();
        serve_tcp(&server, 80);
        assert_eq!(server.ports[0].host_port, 8080);
        // From the host, through its loopback and its own address.
        assert_eq!(ask_tcp(LOOPBACK, 8080).unwrap(), server.gateway.to_string());
        assert_eq!(ask_tcp(HOST, 8080).unwrap(), HOST.to_string());
        assert_eq!(
            ask_tcp(server.gateway, 8080).unwrap(),
            server.gateway.to_string()
        );
        // From another machine, whose address the server sees.
        inside(&world.outside, || {
            assert_eq!(ask_tcp(HOST, 8080).unwrap(), OUTSIDE.to_string());
        });
        // From another container, and from itself.
        for client in [&other, &server] {
            within(client, || {
                let seen = ask_tcp(HOST, 8080).unwrap();
                assert_eq!(seen, server.gateway.to_string(), "{}", client.container);
            });
        }
        network.delete(&container("server")).unwrap();
        assert!(is_unreachable(LOOPBACK, 8080));
        inside(&world.outside, || assert!(is_unreachable(HOST, 8080)));
        // Free again at once.
        drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
        network.delete(&container("other")).unwrap();
    });
}

#[test]
fn a_udp_port_is_published_beside_the_tcp_port_of_the_same_number() {
    on_a_host(|world| {
        let network = world.network();
        let mut wanted = request("c");
        wanted.ports = vec![port(Tcp, Some(53), 5300), port(Udp, Some(53), 5301)];
        let endpoint = network.create(wanted).unwrap();
        serve_udp(&endpoint, 5301);
        serve_tcp(&endpoint, 5300);
        for address in [LOOPBACK, HOST] {
            assert_eq!(ask_udp(address, 53, "ping").unwrap(), "ping");
            ask_tcp(address, 53).unwrap();
        }
        inside(&world.outside, || {
            assert_eq!(ask_udp(HOST, 53, "pong").unwrap(), "pong");
        });
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn a_client_that_goes_on_sending_reaches_the_next_container_with_the_port() {
    on_a_host(|world| {
        let network = world.network();
        let client = inside(&world.outside, || UdpSocket::bind((OUTSIDE, 5000)).unwrap());
        client.connect((HOST, 53)).unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let mut buffer = [0; 8];
        for name in ["first", "second"] {
            // Nobody has the port yet: this begins a flow that leads to the host.
            let _ = client.send(b"lost");
            let mut wanted = request(name);
            wanted.ports = vec![port(Udp, Some(53), 53)];
            let endpoint = network.create(wanted).unwrap();
            serve_udp(&endpoint, 53);
            eventually("an answer", || {
                let _ = client.send(name.as_bytes());
                client
                    .recv(&mut buffer)
                    .is_ok_and(|length| &buffer[..length] == name.as_bytes())
            });
            network.delete(&container(name)).unwrap();
        }
    });
}

#[test]
fn a_port_published_on_one_address_is_not_reached_on_another() {
    on_a_host(|world| {
        let network = world.network();
        let mut wanted = request("c");
        wanted.ports = vec![port(Tcp, Some(8080), 80)];
        wanted.ports[0].host_address = LOOPBACK;
        let endpoint = network.create(wanted).unwrap();
        serve_tcp(&endpoint, 80);
        assert_eq!(
            ask_tcp(LOOPBACK, 8080).unwrap(),
            endpoint.gateway.to_string()
        );
        assert!(is_unreachable(HOST, 8080));
        inside(&world.outside, || assert!(is_unreachable(HOST, 8080)));
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn a_port_without_a_number_gets_a_free_one() {
    on_a_host(|world| {
        let network = world.network();
        let mut wanted = request("c");
        wanted.ports = vec![
            port(Tcp, None, 80),
            port(Tcp, None, 80),
            port(Udp, None, 80),
        ];
        let endpoint = network.create(wanted).unwrap();
        serve_tcp(&endpoint, 80);
        let [first, second, third] = [0, 1, 2].map(|index| endpoint.ports[index].host_port);
        assert!(first >= 49153 && second >= 49153 && third >= 49153);
        assert_ne!(first, second);
        ask_tcp(LOOPBACK, first).unwrap();
        ask_tcp(LOOPBACK, second).unwrap();
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn a_port_in_use_is_refused_before_anything_is_changed() {
    on_a_host(|world| {
        let network = world.network();
        let listener = TcpListener::bind((LOOPBACK, 8081)).unwrap();
        let mut first = request("first");
        first.ports = vec![port(Tcp, Some(8080), 80)];
        network.create(first).unwrap();
        assert!(network.settled(LIMIT));
        let (rules, mut pins) = (output("nft list ruleset"), world.pins());
        pins.sort();
        for taken in [8080, 8081] {
            let mut second = request("second");
            second.ports = vec![port(Tcp, Some(9090), 80), port(Tcp, Some(taken), 80)];
            let error = network.create(second).unwrap_err();
            assert!(
                matches!(&error, NetworkError::Port(PortError::InUse { port, .. }) if *port == taken),
                "{error}"
            );
        }
        assert!(network.settled(LIMIT));
        let mut left = world.pins();
        left.sort();
        assert_eq!((output("nft list ruleset"), left), (rules, pins));
        assert_eq!(network.get(&container("second")), None);
        drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9090)).unwrap());
        drop(listener);
        network.delete(&container("first")).unwrap();
    });
}

#[test]
fn a_flushed_firewall_comes_back() {
    on_a_host(|world| {
        let network = world.network();
        let mut wanted = request("c");
        wanted.ports = vec![port(Tcp, Some(8080), 80)];
        let endpoint = network.create(wanted).unwrap();
        serve_tcp(&endpoint, 80);
        let rules = output("nft list ruleset");
        let table = format!("gantry-{}", crate::world::BRIDGE);
        for damage in [
            "nft flush ruleset".to_owned(),
            format!("nft delete table ip {table}"),
            format!("nft flush chain ip {table} publish_local"),
            format!("nft flush map ip {table} published"),
        ] {
            run(&damage);
            eventually(&damage, || output("nft list ruleset") == rules);
            ask_tcp(LOOPBACK, 8080).unwrap();
        }
        network.delete(&container("c")).unwrap();
    });
}

#[test]
fn a_foreign_table_is_left_alone() {
    on_a_host(|world| {
        run("nft add table ip foreign");
        let network = world.network();
        network.create(request("c")).unwrap();
        network.delete(&container("c")).unwrap();
        drop(network);
        assert_eq!(output("nft list ruleset"), "table ip foreign {\n}\n");
        run("nft delete table ip foreign");
    });
}
