//! A bundle with busybox in it, and the audit of what is left.

use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gantry_shim::container::{self, CreateOptions, Created, Overlay, Stdio};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory with a root file system and a specification, under an id that nobody else has.
pub struct Bundle {
    pub id: String,
    pub directory: tempfile::TempDir,
    pub config: Value,
    mounts_before: Vec<String>,
}

/// The mounts that a test could have left here: those on its directory, and those on the places of a container's root.
/// (Other tests mount other things on the same machine.)
fn host_mounts(directory: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let places = [
        "/",
        "/proc",
        "/sys",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/sys/fs/cgroup",
        "/data",
    ];
    table
        .lines()
        .filter(|line| {
            let point = line.split(' ').nth(4).unwrap_or_default();
            places.contains(&point) || Path::new(point).starts_with(directory)
        })
        .map(str::to_owned)
        .collect()
}

impl Bundle {
    /// One that runs a shell script.
    pub fn script(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub fn new(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev", "data"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static");
        for applet in [
            "sh", "cat", "id", "ls", "sleep", "echo", "grep", "true", "stty", "mkdir", "touch",
            "ps", "head", "tr", "readlink", "mount", "umount", "ln", "kill", "dd", "wc", "test",
            "env", "pwd", "hostname", "stat", "mknod", "chmod", "ip", "tail",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nstaff:x:50:alice\n").unwrap();
        let id = format!(
            "test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let status = Command::new(GANTRY_OCI)
            .args(["spec", "-b"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(status.success());
        let text = std::fs::read_to_string(directory.path().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["process"]["args"] = json!(arguments);
        config["process"]["terminal"] = json!(false);
        config["root"]["readonly"] = json!(false);
        let mounts_before = host_mounts(directory.path());
        Self {
            id,
            directory,
            config,
            mounts_before,
        }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    pub fn spec(&self) -> Spec {
        serde_json::from_value(self.config.clone()).unwrap()
    }

    /// Gives the program these capabilities in all sets but the ambient one.
    pub fn capabilities(&mut self, names: &[&str]) {
        for set in ["bounding", "effective", "permitted"] {
            self.config["process"]["capabilities"][set] = json!(names);
        }
    }

    /// `gantry-oci run`, with the configuration as it is now.
    pub fn run(&self) -> Output {
        self.oci(&[
            "run",
            "-b",
            self.directory.path().to_str().unwrap(),
            &self.id,
        ])
    }

    /// What it writes, which must succeed.
    pub fn output(&self) -> String {
        let output = self.run();
        assert!(
            output.status.success(),
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// How `run` fails.
    pub fn failure(&self) -> String {
        let output = self.run();
        assert!(!output.status.success(), "it should have failed");
        String::from_utf8(output.stderr).unwrap()
    }

    /// `gantry-oci` with its state in the bundle.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let text = serde_json::to_vec(&self.config).unwrap();
        std::fs::write(self.directory.path().join("config.json"), text).unwrap();
        let mut command = Command::new(GANTRY_OCI);
        command
            .arg("--root")
            .arg(self.directory.path().join("state"))
            .args(arguments)
            .stdin(std::process::Stdio::null());
        command
    }

    pub fn oci(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Creates it by the library. The end to read its output from comes too.
    pub fn create(
        &self,
        change: impl FnOnce(&mut CreateOptions<'_>),
    ) -> (container::Result<Created>, OwnedFd) {
        let spec = self.spec();
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut options = CreateOptions::new(&self.id, self.directory.path(), &spec);
        options.stdio = Stdio::Pipes {
            stdin: std::fs::File::open("/dev/null").unwrap().into(),
            stdout: writer.try_clone().unwrap(),
            stderr: writer,
        };
        change(&mut options);
        let created = container::create(options);
        (created, reader)
    }

    /// An overlay over the bundle's root.
    pub fn overlay(&self) -> Overlay {
        let top = self.directory.path().join("top");
        let (upper, work) = (
            self.directory.path().join("upper"),
            self.directory.path().join("work"),
        );
        for directory in [&top, &upper, &work] {
            std::fs::create_dir(directory).unwrap();
        }
        Overlay {
            lower: vec![top, self.root()],
            upper: Some(upper),
            work: Some(work),
            options: Vec::new(),
        }
    }
}

/// The program under test.
pub const GANTRY_OCI: &str = env!("CARGO_BIN_EXE_gantry-oci");

/// Waits for the end of a container, deletes it, and gives its code and signal.
pub fn finish(created: &Created) -> (i32, i32) {
    assert!(created.container.wait(Duration::from_secs(20)), "it hangs");
    let status = created.container.reap().unwrap().unwrap();
    created.container.delete().unwrap();
    status
}

/// Everything that comes out of a pipe until it is closed.
pub fn read_all(reader: OwnedFd) -> String {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::from(reader)
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// What comes over a connection, text and one descriptor.
pub fn receive_descriptor(connection: &std::os::unix::net::UnixStream) -> (String, OwnedFd) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0_u8; 65_536];
    let received = rustix::net::recvmsg(
        connection,
        &mut [std::io::IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    text.truncate(received.bytes);
    let descriptor = control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .expect("a descriptor");
    (String::from_utf8(text).unwrap(), descriptor)
}

fn cgroups_named(id: &str) -> Vec<PathBuf> {
    fn search(directory: &Path, depth: u32, id: &str, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(id) {
                found.push(entry.path());
            } else if depth > 0 {
                search(&entry.path(), depth - 1, id, found);
            }
        }
    }
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), 3, id, &mut found);
    found
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // So that one failure stays one.
            let _ = self.oci(&["delete", "-f", &self.id]);
            let groups = cgroups_named(&self.id);
            for group in &groups {
                let _ = std::fs::write(group.join("cgroup.kill"), "1");
            }
            while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::empty()) {}
            for group in &groups {
                let _ = std::fs::remove_dir(group);
            }
            return;
        }
        assert_eq!(
            cgroups_named(&self.id),
            Vec::<PathBuf>::new(),
            "cgroups left"
        );
        let state = self.directory.path().join("state");
        let left: Vec<_> = std::fs::read_dir(&state).into_iter().flatten().collect();
        assert!(left.is_empty(), "state left: {left:?}");
        assert_eq!(
            host_mounts(self.directory.path()),
            self.mounts_before,
            "mounts of the host changed"
        );
        // A child that is neither running nor reaped would be found here.
        let reaped = rustix::process::wait(rustix::process::WaitOptions::NOHANG);
        assert!(
            matches!(reaped, Err(rustix::io::Errno::CHILD)),
            "a child is left: {reaped:?}"
        );
    }
}
