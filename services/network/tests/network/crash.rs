//! The service as a process: asked over gRPC, killed, and started again.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};

use gantry_proto::network::v1 as wire;
use gantry_proto::network::v1::network_service_client::NetworkServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint as Uri};

use crate::world::{
    BRIDGE, World, ask_tcp, eventually, inside, link_names, on_a_host, output, run, serve,
};

/// A process that does not outlive a test that fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The service as a process of its own, and a client.
struct Service {
    process: Process,
    client: NetworkServiceClient<Channel>,
    runtime: tokio::runtime::Runtime,
}

impl Service {
    fn start(root: &Path, more: &[&str]) -> Self {
        let mut service = Self::launch(root, more);
        // It answers only when it is ready.
        service.list();
        service
    }

    /// Returns as soon as there is a socket; the service may still be starting.
    fn launch(root: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gantry-network"));
        command.arg("--root").arg(root);
        command.args(["--set", &format!("network.bridge={BRIDGE}")]);
        command.args(["--set", "network.warm_pool=2"]);
        for assignment in more {
            command.args(["--set", assignment]);
        }
        let process = Process(command.spawn().unwrap());
        let socket = root.join("run/network.sock");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        eventually("the service listens", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        let channel = runtime.block_on(async {
            let connect = tower_service(socket);
            Uri::from_static("http://network").connect_with_connector_lazy(connect)
        });
        Self {
            process,
            client: NetworkServiceClient::new(channel),
            runtime,
        }
    }

    fn create(&mut self, request: wire::CreateEndpointRequest) -> wire::Endpoint {
        let call = self.client.create_endpoint(request);
        let response = self.runtime.block_on(call).unwrap();
        response.into_inner().endpoint.unwrap()
    }

    fn delete(&mut self, name: &str) -> bool {
        let call = self.client.delete_endpoint(wire::DeleteEndpointRequest {
            container_id: name.to_owned(),
        });
        self.runtime.block_on(call).unwrap().into_inner().deleted
    }

    fn list(&mut self) -> Vec<wire::Endpoint> {
        let call = self
            .client
            .list_endpoints(wire::ListEndpointsRequest::default());
        self.runtime.block_on(call).unwrap().into_inner().endpoints
    }

    fn descriptors(&self) -> usize {
        let directory = format!("/proc/{}/fd", self.process.0.id());
        fs::read_dir(directory).unwrap().count()
    }

    /// SIGKILL.
    fn kill(self) {
        drop(self.process);
    }

    /// SIGTERM, and what an operator would see of it.
    fn stop(mut self) {
        // A connection that stays open would be waited for.
        drop(self.client);
        drop(self.runtime);
        let pid = nix::unistd::Pid::from_raw(self.process.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.process.0.wait().unwrap().success());
    }
}

fn tower_service(
    socket: std::path::PathBuf,
) -> impl tonic::codegen::Service<
    tonic::transport::Uri,
    Response = TokioIo<UnixStream>,
    Error = std::io::Error,
    Future: Send,
> + Send {
    tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })
}

fn published(name: &str, host_port: u32) -> wire::CreateEndpointRequest {
    wire::CreateEndpointRequest {
        container_id: name.to_owned(),
        ephemeral: true,
        ports: vec![wire::PortMapping {
            host_port,
            container_port: 80,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn serve_in(endpoint: &wire::Endpoint) {
    let namespace = fs::File::open(&endpoint.netns_path).unwrap();
    serve(inside(&namespace, || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()
    }));
}

fn root(world: &World) -> std::path::PathBuf {
    world.root.path().join("engine")
}

fn pins(world: &World) -> usize {
    fs::read_dir(root(world).join("run/netns")).unwrap().count()
}

#[test]
fn containers_keep_their_network_while_the_service_is_killed_and_restarted() {
    on_a_host(|world| {
        let mut service = Service::start(&root(world), &[]);
        let endpoint = service.create(published("c", 8080));
        serve_in(&endpoint);
        ask_tcp(Ipv4Addr::LOCALHOST, 8080).unwrap();
        service.kill();
        // Nobody there, and yet:
        ask_tcp(Ipv4Addr::LOCALHOST, 8080).unwrap();
        let mut service = Service::start(&root(world), &[]);
        assert_eq!(service.list(), [endpoint]);
        ask_tcp(Ipv4Addr::LOCALHOST, 8080).unwrap();
        // The port is held again.
        assert!(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).is_err());
        // An orderly stop leaves the endpoint as well.
        service.stop();
        ask_tcp(Ipv4Addr::LOCALHOST, 8080).unwrap();
        let mut service = Service::start(&root(world), &[]);
        assert!(service.delete("c"));
        assert!(!service.delete("c"));
        service.stop();
        assert_eq!(pins(world), 0);
    });
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_that_the_next_start_does_not_clear() {
    on_a_host(|world| {
        for round in 0..6 {
            let mut service = Service::launch(&root(world), &["network.warm_pool=8"]);
            // The pool is being filled, and endpoints are being deleted.
            for name in 0..round {
                let name = format!("c{round}-{name}");
                service.create(published(&name, 0));
                assert!(service.delete(&name));
            }
            service.kill();
        }
        let mut service = Service::start(&root(world), &[]);
        assert_eq!(service.list(), []);
        eventually("the pool is at its size", || {
            pins(world) == 2
                && link_names()
                    .iter()
                    .filter(|name| name.starts_with("veth"))
                    .count()
                    == 2
        });
        service.stop();
        assert_eq!(pins(world), 0);
    });
}

#[test]
fn removals_that_a_kill_interrupts_are_finished_by_the_next_start() {
    on_a_host(|world| {
        let mut service = Service::start(&root(world), &[]);
        let names: Vec<String> = (0..40).map(|number| format!("c{number}")).collect();
        for name in &names {
            service.create(published(name, 0));
        }
        let kept = service.create(published("kept", 8080));
        serve_in(&kept);
        for name in &names {
            assert!(service.delete(name));
        }
        service.kill();
        let mut service = Service::start(&root(world), &[]);
        assert_eq!(service.list(), [kept]);
        // New ones come at once, while the old ones go.
        service.create(published("new", 0));
        eventually("the pool is at its size", || {
            let links = link_names();
            let ports = links.iter().filter(|name| name.starts_with("veth")).count();
            (pins(world), ports) == (4, 4)
        });
        ask_tcp(Ipv4Addr::LOCALHOST, 8080).unwrap();
        for name in ["kept", "new"] {
            assert!(service.delete(name));
        }
        service.stop();
        assert_eq!(pins(world), 0);
    });
}

#[test]
fn what_is_on_no_record_is_cleared() {
    on_a_host(|world| {
        let mut service = Service::start(&root(world), &[]);
        let endpoint = service.create(published("c", 8080));
        service.kill();
        fs::remove_file(root(world).join("run/network/journal")).unwrap();
        let mut service = Service::start(&root(world), &[]);
        assert_eq!(service.list(), []);
        assert!(!Path::new(&endpoint.netns_path).exists());
        drop(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap());
        service.stop();
    });
}

#[test]
fn a_bridge_that_was_removed_while_the_service_was_down_comes_back() {
    on_a_host(|world| {
        let mut service = Service::start(&root(world), &[]);
        let endpoint = service.create(published("c", 8080));
        serve_in(&endpoint);
        service.kill();
        run(&format!("ip link del {BRIDGE}"));
        let mut service = Service::start(&root(world), &[]);
        ask_tcp(Ipv4Addr::LOCALHOST, 8080).unwrap();
        service.delete("c");
        service.stop();
    });
}

#[test]
fn hundreds_of_endpoints_leave_no_descriptor_and_no_rule() {
    on_a_host(|world| {
        let mut service = Service::start(&root(world), &[]);
        let settled = |service: &Service| {
            let mut last = usize::MAX;
            eventually("the pool is at its size", || {
                let now = (pins(world), service.descriptors());
                let same = now.0 == 2 && now.1 == last;
                last = now.1;
                same
            });
            last
        };
        service.create(published("c", 0));
        service.delete("c");
        let before = settled(&service);
        let rules = output("nft list ruleset");
        for round in 0..200 {
            let name = format!("c{round}");
            service.create(published(&name, 0));
            assert!(service.delete(&name));
        }
        let after = settled(&service);
        assert!(after <= before, "{before} descriptors, then {after}");
        assert_eq!(output("nft list ruleset"), rules);
        service.stop();
    });
}

#[test]
fn errors_name_their_reason_on_the_wire() {
    on_a_host(|world| {
        let mut service = Service::start(&root(world), &[]);
        service.create(published("c", 8080));
        let call = service.client.create_endpoint(published("d", 8080));
        let status = service.runtime.block_on(call).unwrap_err();
        let fault = gantry_kit::fault::Fault::from_status(&status);
        assert!(fault.is("PORT_IN_USE"), "{fault:?}");
        assert_eq!(fault.metadata["host_port"], "8080");
        assert_eq!(
            fault.message,
            "port 8080/tcp of the host address 0.0.0.0 is already in use; publish another, or stop what listens there"
        );
        service.delete("c");
        service.stop();
    });
}

#[test]
fn a_second_service_on_the_same_root_is_refused() {
    on_a_host(|world| {
        let service = Service::start(&root(world), &[]);
        fs::remove_file(root(world).join("run/network.sock")).unwrap();
        let second = Command::new(env!("CARGO_BIN_EXE_gantry-network"))
            .arg("--root")
            .arg(root(world))
            .args(["--set", &format!("network.bridge={BRIDGE}")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(1), "{text}");
        assert!(text.contains("another network service uses"), "{text}");
        service.stop();
    });
}
