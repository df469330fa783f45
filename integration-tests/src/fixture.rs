//! Images that many tests run.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::engine::Engine;
use crate::image::{Builder, Image};
use crate::tar::Member;
use crate::{GUEST, command, grpc, registry};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n";
const GROUP: &str = "root:x:0:\nalice:x:1000:\nwheel:x:10:alice\n";

/// An image of one file: the static program of this workspace.
///
/// # Errors
/// It cannot be packed.
pub fn guest() -> Result<Image> {
    Ok(Builder::default()
        .layer(&[Member::directory("etc"), Member::program("guest", GUEST)])
        .entrypoint(&["/guest"])
        .command(&["true"])
        .build()?)
}

/// Members of a small system around the host's static busybox.
///
/// # Errors
/// The package busybox-static is not installed (`make test` installs it).
pub fn busybox_members() -> Result<Vec<Member>> {
    let program = std::fs::read("/bin/busybox")
        .context("/bin/busybox: install the Debian package busybox-static")?;
    let applets = command::run(
        Command::new("/bin/busybox").arg("--list"),
        b"",
        Duration::from_secs(10),
    )?
    .text()?;
    let mut members = vec![
        Member::directory("bin"),
        Member::program("bin/busybox", program),
        Member::directory("etc"),
        Member::file("etc/passwd", PASSWD),
        Member::file("etc/group", GROUP),
        Member::directory("home"),
        Member::directory("home/alice").owner(1000, 1000),
        Member::directory("root").mode(0o700),
        Member::directory("tmp").mode(0o1777),
    ];
    members.extend(
        applets
            .lines()
            .filter(|name| *name != "busybox")
            // Some engines give the file the mode of its last link.
            .map(|name| Member::hard_link(&format!("bin/{name}"), "bin/busybox").mode(0o755)),
    );
    Ok(members)
}

/// A small system around the host's static busybox.
///
/// # Errors
/// As [`busybox_members`].
pub fn busybox() -> Result<Image> {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    if let Some(image) = IMAGE.get() {
        return Ok(image.clone());
    }
    let image = Builder::default()
        .layer(&busybox_members()?)
        .command(&["sh"])
        .set(
            "Env",
            serde_json::json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]),
        )
        .build()?;
    Ok(IMAGE.get_or_init(|| image).clone())
}

impl Engine {
    /// Pushes `image` into this engine's own registry and pulls it back over
    /// HTTP. Answers the reference to run it by.
    ///
    /// # Errors
    /// A step fails.
    pub fn install(&self, name: &str, image: &Image) -> Result<String> {
        let address = grpc::registry_address(&self.socket("registry"))?;
        registry::push(&address, name, "latest", image)?;
        let reference = format!("{address}/{name}:latest");
        self.ok(&["pull", "--quiet", &reference])?;
        Ok(reference)
    }

    /// [`Engine::install`] of [`busybox`].
    ///
    /// # Errors
    /// A step fails.
    pub fn busybox(&self) -> Result<String> {
        self.install("busybox", &busybox()?)
    }
}
