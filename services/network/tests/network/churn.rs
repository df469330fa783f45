//! Endpoints that come and go faster than the kernel removes them.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use gantry_network::NetworkError;

use crate::world::{
    BRIDGE, LIMIT, container, eventually, exists, link_names, on_a_host, request, run,
};

/// Ports of the test's bridge.
fn ports() -> usize {
    link_names()
        .iter()
        .filter(|name| name.starts_with("veth"))
        .count()
}

#[test]
fn creates_wait_for_removals_and_never_fill_the_bridge() {
    const ROUNDS: usize = 1_400;
    on_a_host(|world| {
        let network = world.network();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if number >= ROUNDS {
                                return;
                            }
                            let name = format!("c{number}");
                            network.create(request(&name)).unwrap();
                            assert!(network.delete(&container(&name)).unwrap());
                        }
                    })
                })
                .collect();
            let mut most = 0;
            while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
                most = most.max(ports());
            }
            // The bound on the backlog, one batch, and what is in use.
            assert!(most <= 320, "{most} ports at one time");
        });
        assert!(network.settled(LIMIT));
        assert_eq!(ports(), 2);
        assert_eq!(world.pins().len(), 2);
    });
}

#[test]
fn a_full_bridge_is_an_error_that_names_it() {
    on_a_host(|world| {
        let network = world.network();
        assert!(network.settled(LIMIT));
        // Somebody else's links take all ports that are left.
        let commands: String = (0..1023)
            .map(|number| {
                format!(
                    "link add d{number} group 5 master {BRIDGE} type veth peer name p{number}\n"
                )
            })
            .collect();
        let file = world.root.path().join("commands");
        std::fs::write(&file, commands).unwrap();
        let refused_in_the_end = Command::new("ip")
            .args(["-force", "-batch"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(!refused_in_the_end.status.success());
        for name in ["a", "b"] {
            network.create(request(name)).unwrap();
        }
        let mut wanted = request("c");
        wanted.address = Some(Ipv4Addr::new(10, 66, 9, 9));
        let error = network.create(wanted).unwrap_err();
        assert!(matches!(error, NetworkError::BridgeFull { .. }), "{error}");
        assert!(error.to_string().contains(BRIDGE), "{error}");
        run("ip link del group 5");
        network.create(request("c")).unwrap();
        for name in ["a", "b", "c"] {
            network.delete(&container(name)).unwrap();
        }
    });
}

#[test]
fn an_endpoint_that_cannot_be_removed_holds_up_no_other() {
    on_a_host(|world| {
        let network = world.network();
        let stuck = network.create(request("stuck")).unwrap();
        let file = world.root.path().join("file");
        std::fs::write(&file, "").unwrap();
        let pin = stuck.namespace.display();
        run(&format!("mount --bind {} {pin}", file.display()));
        network.delete(&container("stuck")).unwrap();
        for round in 0..20 {
            let name = format!("c{round}");
            let endpoint = network.create(request(&name)).unwrap();
            network.delete(&container(&name)).unwrap();
            eventually("it is removed", || !exists(&endpoint.namespace));
        }
        assert!(exists(&stuck.namespace));
        run(&format!("umount {pin}"));
        assert!(network.settled(LIMIT));
        assert!(!exists(&stuck.namespace));
    });
}
