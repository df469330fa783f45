//! Docker's noun forms: `gantry container ls` is `gantry ps`.

use clap::Args;

use super::{
    attach, commit, container_prune, cp, create, diff, events, exec, export, history, image_prune,
    images, import, info, inspect, kill, load, logs, network_ls, pause, port, ps, pull, push,
    rename, restart, rm, rmi, run, save, start, stats, stop, system_check, system_df, system_prune,
    tag, top, trace, unpause, update, volume_create, volume_ls, volume_prune, volume_rm, wait,
};
use crate::exit::Failure;
use crate::session::Session;

/// Declares a noun: its verbs, and the way to them.
macro_rules! noun {
    ($(#[$attribute:meta])* $name:ident($verbs:ty)) => {
        $(#[$attribute])*
        #[derive(Debug, Args)]
        pub(crate) struct $name {
            #[command(subcommand)]
            verb: $verbs,
        }

        impl $name {
            pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
                self.verb.run(session).await
            }
        }
    };
}

noun! {
    /// `gantry container`
    Container(ContainerVerb)
}
noun! {
    /// `gantry image`
    Image(ImageVerb)
}
noun! {
    /// `gantry network`
    Network(NetworkVerb)
}
noun! {
    /// `gantry system`
    System(SystemVerb)
}
noun! {
    /// `gantry volume`
    Volume(VolumeVerb)
}

verbs! { ContainerVerb {
    /// Open a window on a running container
    Attach(attach::Attach) = "attach",
    /// Make an image of a container
    Commit(commit::Commit) = "commit",
    /// Copy files out of a container or into it
    Cp(cp::Cp) = "cp",
    /// Create a container and do not start it
    Create(create::Create) = "create",
    /// Show what a container changed in its files
    Diff(diff::Diff) = "diff",
    /// Run one more program in a running container
    Exec(exec::Exec) = "exec",
    /// Write a container's file system as a tar archive
    Export(export::Export) = "export",
    /// Show everything known of containers
    Inspect(ContainerInspect) = "inspect",
    /// Send a signal to containers
    Kill(kill::Kill) = "kill",
    /// Show what a container has written
    Logs(logs::Logs) = "logs",
    /// List containers
    #[command(visible_alias = "list", alias = "ps")]
    Ls(ps::Ps) = "ls",
    /// Freeze all processes of containers
    Pause(pause::Pause) = "pause",
    /// Show where a container's ports are published
    Port(port::Port) = "port",
    /// Remove all containers that do not run
    Prune(container_prune::ContainerPrune) = "prune",
    /// Give a container another name
    Rename(rename::Rename) = "rename",
    /// Stop containers and start them again
    Restart(restart::Restart) = "restart",
    /// Remove containers
    #[command(alias = "remove")]
    Rm(rm::Rm) = "rm",
    /// Create a container and run it
    Run(run::Run) = "run",
    /// Start containers
    Start(start::Start) = "start",
    /// Show what containers use
    Stats(stats::Stats) = "stats",
    /// End containers
    Stop(stop::Stop) = "stop",
    /// Show the processes of a container
    Top(top::Top) = "top",
    /// Show what the last start of a container did, and how long it took
    Trace(trace::Trace) = "trace",
    /// Let frozen containers go on
    Unpause(unpause::Unpause) = "unpause",
    /// Change the limits of containers
    Update(update::Update) = "update",
    /// Wait for containers to end, and print their exit codes
    Wait(wait::Wait) = "wait",
} }

verbs! { ImageVerb {
    /// Show how an image was built
    History(history::History) = "history",
    /// Make an image of a tar archive or of one at a URL
    Import(import::Import) = "import",
    /// Show everything known of images
    Inspect(ImageInspect) = "inspect",
    /// Read images from a tar archive
    Load(load::Load) = "load",
    /// List images
    #[command(visible_alias = "list")]
    Ls(images::Images) = "ls",
    /// Remove images that nobody needs
    Prune(image_prune::ImagePrune) = "prune",
    /// Fetch an image from a registry
    Pull(pull::Pull) = "pull",
    /// Upload an image to a registry
    Push(push::Push) = "push",
    /// Remove images
    #[command(alias = "remove")]
    Rm(rmi::Rmi) = "rm",
    /// Write images into a tar archive
    Save(save::Save) = "save",
    /// Give an image one more name
    Tag(tag::Tag) = "tag",
} }

verbs! { NetworkVerb {
    /// Show everything known of networks
    Inspect(NetworkInspect) = "inspect",
    /// List networks
    #[command(visible_alias = "list")]
    Ls(network_ls::NetworkLs) = "ls",
} }

verbs! { SystemVerb {
    /// Compare what is on the disk with what it should be
    Check(system_check::SystemCheck) = "check",
    /// Show what images and containers take on the disk, and what frees it
    Df(system_df::SystemDf) = "df",
    /// Show what happens, as it happens
    Events(events::Events) = "events",
    /// Show what the engine is, holds and runs on
    Info(info::Info) = "info",
    /// Remove what nobody uses
    Prune(system_prune::SystemPrune) = "prune",
} }

verbs! { VolumeVerb {
    /// Make a volume
    Create(volume_create::VolumeCreate) = "create",
    /// Show everything known of volumes
    Inspect(VolumeInspect) = "inspect",
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(volume_ls::VolumeLs) = "ls",
    /// Remove volumes that no container uses
    Prune(volume_prune::VolumePrune) = "prune",
    /// Remove volumes
    #[command(alias = "remove")]
    Rm(volume_rm::VolumeRm) = "rm",
} }

/// `inspect` of containers alone.
#[derive(Debug, Args)]
pub(crate) struct ContainerInspect {
    #[command(flatten)]
    inspect: inspect::Inspect,
}

impl ContainerInspect {
    async fn run(self, session: &Session) -> Result<u8, Failure> {
        self.inspect.only("container").run(session).await
    }
}

/// `inspect` of images alone.
#[derive(Debug, Args)]
pub(crate) struct ImageInspect {
    #[command(flatten)]
    inspect: inspect::Inspect,
}

impl ImageInspect {
    async fn run(self, session: &Session) -> Result<u8, Failure> {
        self.inspect.only("image").run(session).await
    }
}

/// `inspect` of networks alone.
#[derive(Debug, Args)]
pub(crate) struct NetworkInspect {
    /// For Docker's sake; all is shown
    #[arg(short, long, hide = true)]
    verbose: bool,
    #[command(flatten)]
    inspect: inspect::Inspect,
}

impl NetworkInspect {
    async fn run(self, session: &Session) -> Result<u8, Failure> {
        self.inspect.only("network").run(session).await
    }
}

/// `inspect` of volumes alone.
#[derive(Debug, Args)]
pub(crate) struct VolumeInspect {
    #[command(flatten)]
    inspect: inspect::Inspect,
}

impl VolumeInspect {
    async fn run(self, session: &Session) -> Result<u8, Failure> {
        self.inspect.only("volume").run(session).await
    }
}
