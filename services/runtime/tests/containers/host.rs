//! One runtime service on a root directory of its own, and a busybox to run.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::stream;
use gantry_kit::client::{self, Client};
use gantry_proto::runtime::v1 as runtime;
use gantry_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use gantry_proto::shim::v1 as shim;
use gantry_proto::types::v1 as types;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tonic::Streaming;

/// Longest that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A runtime service.
pub(crate) struct Host {
    root: TempDir,
    service: Child,
    name: String,
    pub(crate) client: RuntimeServiceClient<Client>,
}

/// The shim's program, built now if it is not.
fn shim_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "gantry-shim", "--bin"])
            .arg("gantry-shim")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "the shim does not build");
        Path::new(env!("CARGO_BIN_EXE_gantry-runtime")).with_file_name("gantry-shim")
    })
}

impl Host {
    /// Starts a service, and waits until it answers.
    pub(crate) async fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = tempfile::Builder::new()
            .prefix("gantry-runtime-")
            .tempdir()
            .unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gantry-test-{}-{number}", std::process::id());
        let layer = root.path().join("layer");
        for directory in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
            std::fs::create_dir_all(layer.join(directory)).unwrap();
        }
        std::fs::copy("/bin/busybox", layer.join("bin/busybox"))
            .expect("/bin/busybox is missing: install the package busybox-static");
        for applet in [
            "cat", "dd", "echo", "head", "seq", "sh", "sleep", "stty", "test", "tr", "true", "wc",
            "yes",
        ] {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        std::fs::write(layer.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        std::fs::write(layer.join("bin/data"), "no program\n").unwrap();
        let service = Self::spawn(root.path());
        let mut host = Self {
            client: RuntimeServiceClient::new(client::connect(
                &root.path().join("run/runtime.sock"),
            )),
            root,
            service,
            name,
        };
        host.ready().await;
        host
    }

    fn spawn(root: &Path) -> Child {
        Command::new(env!("CARGO_BIN_EXE_gantry-runtime"))
            .arg("--root")
            .arg(root)
            .arg("--set")
            .arg(format!("runtime.shim={:?}", shim_program()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn ready(&mut self) {
        let begin = Instant::now();
        while self
            .client
            .list(runtime::ListRequest::default())
            .await
            .is_err()
        {
            assert!(begin.elapsed() < LIMIT, "the service does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the service as a crash would.
    pub(crate) fn crash(&mut self) {
        self.service.kill().unwrap();
        self.service.wait().unwrap();
    }

    /// Ends the service as its manager would, and waits for its end.
    pub(crate) async fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.service.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let begin = Instant::now();
        while self.service.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < LIMIT, "the service does not stop");
            // The clients' connections live on this thread: it must not block.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the service anew.
    pub(crate) async fn restart(&mut self) {
        self.service = Self::spawn(self.root.path());
        self.ready().await;
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.root.path().join("run/containers").join(id)
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.root.path().join("log/containers").join(id)
    }

    /// Number of the service's open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.service.id()))
            .unwrap()
            .count()
    }

    /// Directories of cgroups with this host's containers.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = hierarchy.path().join(&self.name);
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    found.push(entry.path());
                }
            }
        }
        found
    }

    /// A request for a container that runs `args`.
    pub(crate) fn container(&self, id: &str, args: &[&str]) -> runtime::CreateRequest {
        let writable = self.root.path().join("writable").join(id);
        let (upper, work) = (writable.join("upper"), writable.join("work"));
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        let path = |path: PathBuf| path.into_os_string().into_string().unwrap();
        runtime::CreateRequest {
            container_id: id.to_owned(),
            spec: self.spec(id, args, false).to_string().into(),
            rootfs: Some(types::Rootfs {
                lower_dirs: vec![path(self.root.path().join("layer"))],
                upper_dir: path(upper),
                work_dir: path(work),
            }),
            ..Default::default()
        }
    }

    /// The same with a terminal of that size.
    pub(crate) fn terminal(
        &self,
        id: &str,
        args: &[&str],
        columns: u32,
        rows: u32,
    ) -> runtime::CreateRequest {
        runtime::CreateRequest {
            spec: self.spec(id, args, true).to_string().into(),
            stdin: true,
            terminal_size: Some(types::TerminalSize { columns, rows }),
            ..self.container(id, args)
        }
    }

    fn spec(&self, id: &str, args: &[&str], terminal: bool) -> Value {
        json!({
            "ociVersion": "1.2.0",
            "process": process(args, terminal),
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
                "cgroupsPath": format!("/{}/{id}", self.name),
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"},
                    {"type": "uts"}, {"type": "network"},
                ],
            },
        })
    }

    pub(crate) async fn create(&self, request: runtime::CreateRequest) -> i32 {
        let answer = self.client.clone().create(request).await.unwrap();
        answer.into_inner().pid
    }

    /// Creates and starts.
    pub(crate) async fn run(&self, request: runtime::CreateRequest) {
        let id = request.container_id.clone();
        self.create(request).await;
        self.begin(&id).await;
    }

    pub(crate) async fn begin(&self, id: &str) {
        let request = runtime::StartRequest {
            container_id: id.to_owned(),
        };
        self.client.clone().start(request).await.unwrap();
    }

    pub(crate) async fn wait(&self, id: &str) -> types::ExitStatus {
        self.wait_for(id, "").await
    }

    pub(crate) async fn wait_for(&self, id: &str, exec_id: &str) -> types::ExitStatus {
        let request = runtime::WaitRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let mut client = self.client.clone();
        let answer = tokio::time::timeout(LIMIT, client.wait(request)).await;
        answer
            .expect("no end")
            .unwrap()
            .into_inner()
            .status
            .unwrap()
    }

    pub(crate) async fn get(&self, id: &str) -> Option<runtime::Container> {
        let request = runtime::GetRequest {
            container_id: id.to_owned(),
        };
        let answer = self.client.clone().get(request).await.ok()?;
        answer.into_inner().container
    }

    pub(crate) async fn kill(&self, id: &str, signal: u32) {
        let request = runtime::KillRequest {
            container_id: id.to_owned(),
            signal,
            ..Default::default()
        };
        self.client.clone().kill(request).await.unwrap();
    }

    pub(crate) async fn delete(&self, id: &str) {
        let request = runtime::DeleteRequest {
            container_id: id.to_owned(),
            force: true,
            remove_log: true,
        };
        self.client.clone().delete(request).await.unwrap();
    }

    /// Opens a window that shows all output.
    pub(crate) async fn attach(&self, id: &str, exec_id: &str, stdin: bool) -> Window {
        let open = shim::AttachOpen {
            exec_id: exec_id.to_owned(),
            stdin,
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        self.open(id, open).await.0
    }

    /// Opens the primary window `name` on the first process, from `resume_at` on.
    pub(crate) async fn primary(
        &self,
        id: &str,
        name: &str,
        resume_at: Option<u64>,
    ) -> (Window, shim::Attached) {
        let open = shim::AttachOpen {
            stdout: true,
            stderr: true,
            primary: name.to_owned(),
            resume_at,
            ..Default::default()
        };
        self.open(id, open).await
    }

    /// Opens a window on the input of the first process, under a name.
    pub(crate) async fn typist(&self, id: &str, name: &str) -> (Window, shim::Attached) {
        let open = shim::AttachOpen {
            stdin: true,
            typist: name.to_owned(),
            ..Default::default()
        };
        self.open(id, open).await
    }

    async fn open(&self, id: &str, window: shim::AttachOpen) -> (Window, shim::Attached) {
        let (typed, received) = mpsc::channel(16);
        let acknowledges = !window.primary.is_empty();
        let position = window.resume_at.unwrap_or(0);
        let open = runtime::AttachOpen {
            container_id: id.to_owned(),
            window: Some(window),
        };
        send(&typed, runtime::attach_request::Message::Open(open)).await;
        let requests = stream::unfold(received, |mut received: mpsc::Receiver<_>| async {
            Some((received.recv().await?, received))
        });
        let answers = self.client.clone().attach(requests).await.unwrap();
        let mut window = Window {
            typed: Some(typed),
            answers: answers.into_inner(),
            acknowledges,
            position,
        };
        let first = window.next().await;
        let Some(shim::attach_response::Message::Attached(attached)) = first else {
            panic!("not attached: {first:?}");
        };
        (window, attached)
    }

    /// Runs a process in a container with a window on it.
    pub(crate) async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        args: &[&str],
        stdin: bool,
    ) -> Result<Window, tonic::Status> {
        let request = runtime::ExecRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            process: process(args, false).to_string().into(),
            stdin,
            open_window: true,
            ..Default::default()
        };
        self.client.clone().exec(request).await?;
        Ok(self.attach(id, exec_id, stdin).await)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _dead = self.service.kill();
        let _reaped = self.service.wait();
        let containers = self.root.path().join("run/containers");
        for bundle in std::fs::read_dir(containers)
            .into_iter()
            .flatten()
            .flatten()
        {
            end_shim(&bundle.path());
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _absent = std::fs::remove_dir(hierarchy.path().join(&self.name));
        }
    }
}

/// Ends what a failed test left of a container.
fn end_shim(bundle: &Path) {
    let Some(record) = std::fs::read(bundle.join("record.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
    else {
        return;
    };
    for key in ["shim_pid", "pid"] {
        let pid = record[key].as_i64().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.filter(|pid| *pid > 1) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _dead = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
    let _swept = Command::new(shim_program())
        .arg("sweep")
        .arg(bundle)
        .status();
}

/// The OCI "process" that executes `args`.
pub(crate) fn process(args: &[&str], terminal: bool) -> Value {
    json!({
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
    })
}

async fn send(
    typed: &mpsc::Sender<runtime::AttachRequest>,
    message: runtime::attach_request::Message,
) {
    let request = runtime::AttachRequest {
        message: Some(message),
    };
    typed.send(request).await.unwrap();
}

/// A window on a process.
pub(crate) struct Window {
    typed: Option<mpsc::Sender<runtime::AttachRequest>>,
    pub(crate) answers: Streaming<shim::AttachResponse>,
    /// Whether it tells what it has received.
    acknowledges: bool,
    /// Bytes that it has received.
    pub(crate) position: u64,
}

/// All that a window showed.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
    pub(crate) missed: u64,
    pub(crate) exit: Option<types::ExitStatus>,
}

impl Shown {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    pub(crate) fn code(&self) -> i32 {
        self.exit.as_ref().expect("the process ended").code
    }
}

impl Window {
    pub(crate) async fn enter(&self, data: &[u8]) {
        let data = bytes::Bytes::copy_from_slice(data);
        let message = runtime::attach_request::Message::Stdin(data);
        send(self.typed.as_ref().unwrap(), message).await;
    }

    pub(crate) async fn end_input(&self) {
        let message = runtime::attach_request::Message::StdinClose(shim::StdinClose {});
        send(self.typed.as_ref().unwrap(), message).await;
    }

    pub(crate) async fn resize(&self, columns: u32, rows: u32) {
        let size = types::TerminalSize { columns, rows };
        let message = runtime::attach_request::Message::Resize(size);
        send(self.typed.as_ref().unwrap(), message).await;
    }

    pub(crate) async fn next(&mut self) -> Option<shim::attach_response::Message> {
        let answer = tokio::time::timeout(LIMIT, self.answers.message()).await;
        let message = answer.expect("the window hangs").unwrap()?.message;
        if let Some(shim::attach_response::Message::Output(output)) = &message {
            self.position += output.data.len() as u64;
            if self.acknowledges {
                self.acknowledge().await;
            }
        }
        message
    }

    async fn acknowledge(&self) {
        let received = shim::Received {
            position: self.position,
        };
        // The process may have ended, and the stream with it.
        let request = runtime::AttachRequest {
            message: Some(runtime::attach_request::Message::Received(received)),
        };
        let _ended = self.typed.as_ref().unwrap().send(request).await;
    }

    /// Shows all until the process has ended.
    pub(crate) async fn all(&mut self) -> Shown {
        let mut shown = Shown::default();
        while let Some(message) = self.next().await {
            add(&mut shown, message);
        }
        shown
    }

    /// Shows output until the window has received `position` bytes.
    pub(crate) async fn up_to(&mut self, position: u64) -> Shown {
        let mut shown = Shown::default();
        while self.position < position {
            let message = self.next().await;
            add(&mut shown, message.expect("the window ended"));
        }
        shown
    }

    /// Shows all until the output holds `text`.
    pub(crate) async fn until(&mut self, text: &str) -> Shown {
        let mut shown = Shown::default();
        while !shown.text().contains(text) {
            let message = self.next().await;
            let message = message.unwrap_or_else(|| panic!("no {text:?} in {shown:?}"));
            add(&mut shown, message);
        }
        shown
    }
}

fn add(shown: &mut Shown, message: shim::attach_response::Message) {
    use shim::attach_response::Message;
    match message {
        Message::Attached(_) => {}
        Message::Output(output) => match output.stream() {
            types::Stream::Stderr => shown.err.extend_from_slice(&output.data),
            _ => shown.out.extend_from_slice(&output.data),
        },
        Message::Missed(missed) => shown.missed += missed.bytes,
        Message::Typed(_) => {}
        Message::Exited(exit) => shown.exit = Some(exit),
    }
}
