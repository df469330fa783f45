//! A host of one's own for each test: a network and a mount namespace with a
//! link to an "outside" machine, so that no test touches the real host.
//!
//! ```text
//!   outside (192.0.2.9) ---- uplink (192.0.2.2) host ---- bridge, endpoints
//! ```
//! A namespace belongs to a thread here: the test runs in the host's, and
//! [`inside`] runs a closure in another by a thread that enters it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gantry_kit::paths::Paths;
use gantry_network::config::{Config, Wanted};
use gantry_network::endpoint::{ContainerId, Endpoint, EndpointRequest, PortRequest, Protocol};
use gantry_network::network::Network;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
pub(crate) const BRIDGE: &str = "testbr0";
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) root: TempDir,
    /// The outside machine's namespace.
    pub(crate) outside: File,
    links: Vec<String>,
    _stop: mpsc::Sender<()>,
}

/// Runs a test on a host of its own, and audits that it leaves nothing.
pub(crate) fn on_a_host(test: impl FnOnce(&World) + Send) {
    thread::scope(|scope| {
        let outcome = scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                mount(
                    None::<&str>,
                    "/",
                    None::<&str>,
                    MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                    None::<&str>,
                )
                .unwrap();
                let world = World::new();
                test(&world);
                world.audit();
            })
            .join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

impl World {
    fn new() -> Self {
        let (announce, announced) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        // The outside machine is a thread that waits; its namespace is reached
        // by its file.
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let own = File::open("/proc/thread-self/ns/net").unwrap();
            announce.send((own, nix::unistd::gettid())).unwrap();
            let _ = stopped.recv();
        });
        let (outside, thread) = announced.recv().unwrap();
        run("ip link set lo up");
        run(&format!(
            "ip link add uplink type veth peer name eth0 netns {thread}"
        ));
        run(&format!("ip address add {HOST}/24 dev uplink"));
        run("ip link set uplink up");
        inside(&outside, || {
            run("ip link set lo up");
            run(&format!("ip address add {OUTSIDE}/24 dev eth0"));
            run("ip link set eth0 up");
        });
        Self {
            root: tempfile::tempdir().unwrap(),
            outside,
            links: link_names(),
            _stop: stop,
        }
    }

    pub(crate) fn wanted(&self, change: impl FnOnce(&mut Config)) -> Wanted {
        self.wanted_below(self.root.path(), |config| {
            config.bridge = BRIDGE.to_owned();
            config.subnet = Some("10.66.0.0/16".parse().unwrap());
            change(config);
        })
    }

    /// For an engine with a root of its own and its own names.
    pub(crate) fn wanted_below(&self, root: &Path, change: impl FnOnce(&mut Config)) -> Wanted {
        let mut config = Config {
            warm_pool: 2,
            ..Config::default()
        };
        change(&mut config);
        Wanted::new(config, &Paths::under(root).unwrap()).unwrap()
    }

    pub(crate) fn network(&self) -> Network {
        Network::start(self.wanted(|_| {})).unwrap()
    }

    pub(crate) fn pins(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.root.path().join("run/netns")) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// Fails if anything is here that was not at the beginning.
    pub(crate) fn audit(&self) {
        assert_eq!(link_names(), self.links, "links");
        assert_eq!(output("nft list ruleset"), "", "nftables");
        assert_eq!(self.pins(), Vec::<String>::new(), "pinned namespaces");
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let root = self.root.path().to_str().unwrap();
        assert!(!mounts.contains(root), "mounts below {root}:\n{mounts}");
    }
}

pub(crate) fn link_names() -> Vec<String> {
    output("ip -o link")
        .lines()
        .map(|line| {
            let name = line.split(": ").nth(1).unwrap();
            name.split('@').next().unwrap().to_owned()
        })
        .collect()
}

pub(crate) fn output(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn run(command: &str) {
    output(command);
}

/// Runs `work` in the network namespace of `file`.
pub(crate) fn inside<T: Send>(file: &File, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `work` as a process of the endpoint's container would.
pub(crate) fn within<T: Send>(endpoint: &Endpoint, work: impl FnOnce() -> T + Send) -> T {
    inside(&File::open(&endpoint.namespace).unwrap(), work)
}

pub(crate) fn container(name: &str) -> ContainerId {
    ContainerId::try_from(name.to_owned()).unwrap()
}

pub(crate) fn request(name: &str) -> EndpointRequest {
    EndpointRequest {
        users: None,
        mac: None,
        container: container(name),
        names: vec![name.to_owned()],
        ports: Vec::new(),
        address: None,
        ephemeral: true,
    }
}

pub(crate) fn port(protocol: Protocol, host_port: Option<u16>, container_port: u16) -> PortRequest {
    PortRequest {
        host_address: Ipv4Addr::UNSPECIFIED,
        host_port,
        container_port,
        protocol,
    }
}

/// A server inside an endpoint that tells each client the address that it sees.
/// It ends with its process.
pub(crate) fn serve_tcp(endpoint: &Endpoint, port: u16) {
    let listener = within(endpoint, || {
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
    });
    serve(listener);
}

pub(crate) fn serve(listener: TcpListener) {
    // A socket belongs to the namespace it was made in, whatever thread uses it.
    thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

pub(crate) fn serve_udp(endpoint: &Endpoint, port: u16) {
    let socket = within(endpoint, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
}

/// What the server at this address says: the client's address as it sees it.
pub(crate) fn ask_tcp(address: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// As [`ask_tcp`], for what must not be reached.
pub(crate) fn is_unreachable(address: Ipv4Addr, port: u16) -> bool {
    let brief = Duration::from_millis(300);
    TcpStream::connect_timeout(&SocketAddr::from((address, port)), brief).is_err()
}

pub(crate) fn ask_udp(address: Ipv4Addr, port: u16, word: &str) -> std::io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect((address, port))?;
    socket.send(word.as_bytes())?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::yield_now();
    }
}

pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
