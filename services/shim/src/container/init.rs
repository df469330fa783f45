//! The container's first process, from its birth to the program.
//!
//! The order matters: everything that needs the host's paths comes before the pivot, everything that needs rights before
//! they are given up, and what waits for the parent (the cgroups) as late as possible.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use gantry_sys::mount::{Attributes, set_attributes};
use oci_spec::runtime::LinuxNamespaceType as Kind;
use rustix::fs::Mode;

use super::context::During;
use super::error::Result;
use super::launch::{self, Clock};
use super::mounts;
use super::record::Status;
use super::setup::Setup;
use super::wire::{self, Message};
use super::{
    cgroup_mount, devices, hide, hooks, identity, loopback, namespaces, rootfs, stand_in, sysctl,
    terminal,
};

/// The two ways to the parent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines<'a> {
    /// The child's end of the pair.
    pub(super) parent: BorrowedFd<'a>,
    /// Where `start` comes from, if not from there.
    pub(super) gate: Option<BorrowedFd<'a>>,
}

/// The child's life. It returns only if the program was not executed; the code is nobody's.
pub(super) fn run(setup: &Setup<'_>, lines: Lines<'_>, zero: Instant) -> i32 {
    let mut starter = None;
    let Err(error) = live(setup, lines, zero, &mut starter);
    let message = Message::Failed((&error).into());
    let to = starter.as_ref().map_or(lines.parent, AsFd::as_fd);
    let _ = wire::send(to, &message, None);
    1
}

fn live(
    setup: &Setup<'_>,
    lines: Lines<'_>,
    zero: Instant,
    starter: &mut Option<OwnedFd>,
) -> Result<Infallible> {
    let mut clock = Clock::start(zero);
    if let Some(command_line) = setup.command_line {
        stand_in::show_as_init(command_line, &setup.launch.arguments)
            .during("show", "the command line of an init")?;
    }
    let mut member = Membership {
        setup,
        parent: lines.parent,
        told: false,
        joined: false,
    };
    isolate(setup, lines, &mut member, &mut clock)?;
    clock.lap("namespaces");
    let mut root = make_root(setup)?;
    clock.lap("root");
    let makes_mounts = setup.makes_mounts();
    if makes_mounts {
        fill(setup, &mut root, &mut member, &mut clock)?;
    }
    let terminal = launch::open_terminal(root.as_fd(), &setup.options.stdio, &setup.launch)?;
    if let Some((master, slave)) = &terminal {
        if makes_mounts {
            terminal::bind_console(root.as_fd(), slave)?;
        }
        wire::send(lines.parent, &Message::Terminal, Some(master.as_fd()))
            .during("send", "terminal")?;
    }
    if setup.has_runtime_hooks() {
        wire::send(lines.parent, &Message::Hooks, None).during("send", "hooks")?;
        wire::await_signal(lines.parent, wire::HOOKS_DONE).during("wait for", "hooks")?;
        clock.lap("runtime hooks");
    }
    if let Some(hooks) = setup
        .hooks()
        .and_then(|hooks| hooks.create_container().as_deref())
        && !hooks.is_empty()
    {
        let state = hooks::state(&setup.record(), Status::Creating, own_pid());
        hooks::run("createContainer", hooks, &state, Some(setup.options.bundle))?;
        clock.lap("createContainer hooks");
    }
    member.join()?;
    if let Some(linux) = setup.spec.linux() {
        if let Some(wanted) = linux.sysctl() {
            sysctl::set(wanted)?;
        }
        if makes_mounts {
            hide::make_read_only(
                root.as_fd(),
                linux.readonly_paths().as_deref().unwrap_or_default(),
            )?;
            hide::mask(
                root.as_fd(),
                linux.masked_paths().as_deref().unwrap_or_default(),
            )?;
        }
    }
    clock.lap("masks");
    let who = identity::resolve(
        root.as_fd(),
        setup.launch.process.user(),
        setup.launch.user,
        &setup.launch.groups,
        setup.launch.needs_home(),
    )?;
    if setup.launch.create_cwd {
        launch::make_cwd(root.as_fd(), setup.launch.process, &who)?;
    }
    enter(setup, root.as_fd())?;
    drop(root);
    clock.lap("pivot");
    launch::set_streams(
        &setup.options.stdio,
        terminal.as_ref().map(|(_, slave)| slave),
        &who,
    )?;
    drop(terminal);
    let ready = launch::prepare(&setup.launch, &who, lines.parent)?;
    clock.lap("privileges");
    wire::send(
        lines.parent,
        &Message::Ready {
            timings: clock.timings,
        },
        None,
    )
    .during("send", "ready")?;
    *starter = await_start(lines)?;
    if let Some(hooks) = setup
        .hooks()
        .and_then(|hooks| hooks.start_container().as_deref())
        && !hooks.is_empty()
    {
        let state = hooks::state(&setup.record(), Status::Created, own_pid());
        let environment = setup.launch.process.env().as_deref().unwrap_or_default();
        hooks::run_inside("startContainer", hooks, &state, environment)?;
    }
    Err(if stand_in::wanted(setup.spec) {
        ready.stay()
    } else {
        ready.execute()
    })
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

/// Waits for `start`; the connection it came on, if it is not the parent's.
fn await_start(lines: Lines<'_>) -> Result<Option<OwnedFd>> {
    let Some(gate) = lines.gate else {
        wire::await_signal(lines.parent, wire::START).during("wait for", "start")?;
        return Ok(None);
    };
    loop {
        let connection = rustix::net::accept_with(gate, rustix::net::SocketFlags::CLOEXEC)
            .during("wait for", "start")?;
        // Somebody who connects and goes has started nothing.
        if wire::await_signal(&connection, wire::START).is_ok() {
            return Ok(Some(connection));
        }
    }
}

/// Namespaces, names, and everything of the parent's that must not stay.
fn isolate(
    setup: &Setup<'_>,
    lines: Lines<'_>,
    member: &mut Membership<'_, '_>,
    clock: &mut Clock,
) -> Result<()> {
    gantry_sys::process::reset_signals().during("reset", "signals")?;
    // Until it is the program, nobody in the container may look into this process (CVE-2019-5736, CVE-2016-9962).
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .during("make undumpable", "init")?;
    let mut kept = setup.kept();
    kept.push(lines.parent);
    kept.extend(lines.gate);
    gantry_sys::fd::close_all_but(3 + setup.options.preserve_fds, &kept)
        .during("close descriptors", "of the parent")?;
    rustix::process::umask(Mode::empty());
    // An undumpable process' files in /proc are the host's root's: it must be that still.
    if !setup.namespaces.joins(Kind::User) {
        launch::set_oom_score(setup.launch.process)?;
    }
    if setup.namespaces.has_new(Kind::User) {
        wire::await_signal(lines.parent, wire::MAPPED).during("wait for", "id mappings")?;
        become_root()?;
    }
    let _ = rustix::process::setsid();
    if let Some(policy) = setup
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.memory_policy().as_ref())
    {
        super::memory_policy::set(policy)?;
    }
    for join in &setup.namespaces.join {
        if setup.joins_in_child(join.kind) {
            clock.across(|| namespaces::enter(join))?;
        }
    }
    if setup.namespaces.has_new(Kind::Time) {
        make_time_namespace(setup, member)?;
        clock.across(enter_time_namespace)?;
    }
    if let Some(name) = setup
        .spec
        .hostname()
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        rustix::system::sethostname(name.as_bytes()).during("set hostname", name)?;
    }
    if let Some(name) = setup
        .spec
        .domainname()
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        rustix::system::setdomainname(name.as_bytes()).during("set domainname", name)?;
    }
    if setup.namespaces.has_new(Kind::Network) {
        loopback::set_up().during("set up interface", "lo")?;
    }
    Ok(())
}

/// The mapped root of a user namespace.
pub(super) fn become_root() -> Result<()> {
    let root = identity::Identity::default();
    super::privileges::become_user(&root, false)?;
    // A change of ids makes a process dumpable or not by the host's setting; keep it as it was.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .during("make undumpable", "init")
}

fn make_time_namespace(setup: &Setup<'_>, member: &mut Membership<'_, '_>) -> Result<()> {
    // Only children would be in it: offsets may be set as long as nobody is.
    gantry_sys::clone::unshare(namespaces::flag(Kind::Time)).during("make namespace", "time")?;
    let offsets = setup
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.time_offsets().as_ref());
    let mut lines = String::new();
    for (clock, offset) in offsets.into_iter().flatten() {
        let line = format!(
            "{clock} {} {}\n",
            offset.secs().unwrap_or(0),
            offset.nanosecs().unwrap_or(0)
        );
        lines.push_str(&line);
    }
    if lines.is_empty() {
        return Ok(());
    }
    if setup.namespaces.separate(Kind::User) {
        // This process is undumpable, so its files in /proc belong to the host's root, who is nobody here.
        // The parent listens once it has made the cgroups.
        member.await_groups()?;
        wire::send(member.parent, &Message::TimeOffsets { lines }, None)
            .during("send", "time offsets")?;
        return wire::await_signal(member.parent, wire::TIME_SET)
            .during("wait for", "time offsets");
    }
    std::fs::write("/proc/self/timens_offsets", &lines).during("set time offsets", &lines)
}

/// Enters the time namespace that was made for children. Only newer kernels than 6.1 would do so by themselves, with the
/// execve of the program.
fn enter_time_namespace() -> Result<()> {
    let path = "/proc/self/ns/time_for_children";
    let made = std::fs::File::open(path).during("open namespace", path)?;
    gantry_sys::clone::enter_namespaces(made.as_fd(), namespaces::flag(Kind::Time))
        .during("join namespace", "time")
}

/// The root: mounted and attached, or in place.
fn make_root(setup: &Setup<'_>) -> Result<OwnedFd> {
    if !setup.namespaces.has_new(Kind::Mount) {
        return rootfs::open_in_place(&setup.root);
    }
    // Before the propagation changes: a clone that is shared with the host then becomes a slave with the rest.
    rootfs::separate(setup.propagation)?;
    let root = match (&setup.root_tree, &setup.options.overlay) {
        (Some(tree), _) => tree
            .try_clone()
            .during("mount root", setup.root.display())?,
        (None, Some(overlay)) => rootfs::mount_overlay(overlay)?,
        (None, None) => {
            let tree = rootfs::clone_path(&setup.root)?;
            // A root that is a mount of its own may be a shared one by now, to which one cannot pivot. What it is to
            // tell others of is settled after that.
            let private = Attributes {
                propagation: libc::MS_PRIVATE,
                ..Attributes::default()
            };
            set_attributes(tree.as_fd(), c"", false, private)
                .during("set mount propagation", "root")?;
            tree
        }
    };
    // Hooks that run in the container's mount namespace look for the root where the bundle has it.
    let at = if setup.has_hooks_inside() && setup.options.overlay.is_none() {
        setup.root.as_path()
    } else {
        Path::new("/")
    };
    rootfs::attach(&root, at)?;
    Ok(root)
}

/// Mounts and devices.
fn fill(
    setup: &Setup<'_>,
    root: &mut OwnedFd,
    member: &mut Membership<'_, '_>,
    clock: &mut Clock,
) -> Result<()> {
    for mount in &setup.mounts {
        if mount.options.bind.is_none() && matches!(mount.kind.as_str(), "cgroup" | "cgroup2") {
            clock.lap("mounts");
            member.join()?;
            clock.lap("cgroup");
            cgroup_mount::mount(setup, mount, root.as_fd())?;
        } else if mount.covers_root() {
            *root = mount.mount_over(root)?;
        } else {
            mount.mount(root.as_fd())?;
        }
    }
    clock.lap("mounts");
    let bound = setup.mounts.iter().any(|mount| {
        mount.options.bind.is_some()
            && mount
                .destination
                .components()
                .eq(Path::new("/dev").components())
    });
    if !bound {
        devices::make(
            root.as_fd(),
            &setup.devices,
            setup.namespaces.separate(Kind::User),
        )?;
        devices::link(root.as_fd())?;
    }
    clock.lap("devices");
    Ok(())
}

/// The membership in the cgroups, taken when it is first needed: the parent makes them meanwhile.
struct Membership<'a, 'b> {
    setup: &'a Setup<'b>,
    parent: BorrowedFd<'a>,
    /// The parent has said that the groups exist.
    told: bool,
    joined: bool,
}

impl Membership<'_, '_> {
    fn await_groups(&mut self) -> Result<()> {
        if self.told {
            return Ok(());
        }
        self.told = true;
        wire::await_signal(self.parent, wire::CGROUP).during("wait for", "cgroups")
    }

    fn join(&mut self) -> Result<()> {
        if self.joined {
            return Ok(());
        }
        self.joined = true;
        self.await_groups()?;
        if !self.setup.parent_adds() {
            self.setup.cgroup.join()?;
        }
        if self.setup.namespaces.has_new(Kind::Cgroup) {
            gantry_sys::clone::unshare(namespaces::flag(Kind::Cgroup))
                .during("make namespace", "cgroup")?;
        }
        Ok(())
    }
}

/// Makes the root the root.
fn enter(setup: &Setup<'_>, root: BorrowedFd<'_>) -> Result<()> {
    if !setup.namespaces.has_new(Kind::Mount) {
        if setup.read_only && setup.makes_mounts() {
            rootfs::seal(root)?;
        }
        rustix::process::fchdir(root).during("enter root", setup.root.display())?;
        rustix::process::chroot(".").during("change root", setup.root.display())?;
        return rustix::process::chdir("/").during("enter root", "/");
    }
    if setup.read_only {
        rootfs::seal(root)?;
    }
    if setup.options.no_pivot {
        rootfs::move_root(root)?;
    } else {
        rootfs::pivot(root)?;
    }
    match setup.propagation {
        Some(flags) => mounts::propagate("/", flags),
        None => Ok(()),
    }
}
