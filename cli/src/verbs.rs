//! The verbs, one per file.

mod attach;
mod commit;
mod completion;
mod container_prune;
mod cp;
mod create;
mod diff;
mod events;
mod exec;
mod export;
mod history;
mod image_prune;
mod image_tree;
mod images;
mod import;
mod info;
mod inspect;
mod kill;
mod load;
mod login;
mod logout;
mod logs;
mod network_ls;
mod pause;
mod port;
pub(crate) mod ps;
mod pull;
mod push;
mod rename;
mod restart;
mod rm;
mod rmi;
mod run;
mod save;
mod search;
mod start;
mod stats;
mod stop;
mod system_check;
mod system_df;
mod system_prune;
mod tag;
mod top;
mod trace;
mod unpause;
mod up;
mod update;
mod version;
mod volume_create;
mod volume_ls;
mod volume_prune;
mod volume_rm;
mod wait;

/// Declares verbs: the enum, and the way to each.
///
/// Clap's own derivation makes the arguments of every verb, some four hundred,
/// before it looks at the command line. Here they are made when their verb is
/// the one that is meant: a millisecond less for each command.
macro_rules! verbs {
    ($name:ident { $(
        #[doc = $about:literal]
        $(#[command($($setting:ident = $value:literal),+)])?
        $variant:ident($arguments:ty) = $word:literal
    ),* $(,)? }) => {
        #[derive(Debug)]
        pub(crate) enum $name {
            $(#[doc = $about] $variant(Box<$arguments>),)*
        }

        impl $name {
            pub(crate) async fn run(self, session: &crate::session::Session) -> Result<u8, crate::exit::Failure> {
                match self {
                    $(Self::$variant(verb) => verb.run(session).await,)*
                }
            }
        }

        impl clap::Subcommand for $name {
            fn augment_subcommands(command: clap::Command) -> clap::Command {
                command$(.subcommand(
                    clap::Command::new($word)
                        .about($about.trim_ascii())
                        $($(.$setting($value))+)?
                        .defer(|verb| <$arguments as clap::Args>::augment_args(verb).about($about.trim_ascii()))
                ))*
            }

            fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
                Self::augment_subcommands(command)
            }

            fn has_subcommand(name: &str) -> bool {
                matches!(name, $($word)|*)
            }
        }

        impl clap::FromArgMatches for $name {
            fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
                match matches.subcommand() {
                    $(Some(($word, matches)) => <$arguments as clap::FromArgMatches>::from_arg_matches(matches)
                        .map(|verb| Self::$variant(Box::new(verb))),)*
                    _ => Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}

mod nouns;

verbs! { Verb {
    /// Open a window on a running container
    Attach(attach::Attach) = "attach",
    /// Make an image of a container
    Commit(commit::Commit) = "commit",
    /// Write a completion script for a shell
    Completion(completion::Completion) = "completion",
    /// Manage containers
    Container(nouns::Container) = "container",
    /// Copy files out of a container or into it
    Cp(cp::Cp) = "cp",
    /// Create a container and do not start it
    Create(create::Create) = "create",
    /// Show what a container changed in its files, or how two images differ
    Diff(diff::Diff) = "diff",
    /// Show what happens, as it happens
    Events(events::Events) = "events",
    /// Run one more program in a running container
    Exec(exec::Exec) = "exec",
    /// Write a container's file system as a tar archive
    Export(export::Export) = "export",
    /// Show how an image was built
    History(history::History) = "history",
    /// Manage images
    Image(nouns::Image) = "image",
    /// List images
    Images(images::Images) = "images",
    /// Make an image of a tar archive or of one at a URL
    Import(import::Import) = "import",
    /// Show what the engine is, holds and runs on
    Info(info::Info) = "info",
    /// Show everything known of containers and images
    Inspect(inspect::Inspect) = "inspect",
    /// Send a signal to containers
    Kill(kill::Kill) = "kill",
    /// Read images from a tar archive
    Load(load::Load) = "load",
    /// Log in to a registry
    Login(login::Login) = "login",
    /// Log out from a registry
    Logout(logout::Logout) = "logout",
    /// Show what a container has written
    Logs(logs::Logs) = "logs",
    /// Manage networks
    Network(nouns::Network) = "network",
    /// Freeze all processes of containers
    Pause(pause::Pause) = "pause",
    /// Show where a container's ports are published
    Port(port::Port) = "port",
    /// List containers
    Ps(ps::Ps) = "ps",
    /// Fetch an image from a registry
    Pull(pull::Pull) = "pull",
    /// Upload an image to a registry
    Push(push::Push) = "push",
    /// Give a container another name
    Rename(rename::Rename) = "rename",
    /// Stop containers and start them again
    Restart(restart::Restart) = "restart",
    /// Remove containers
    Rm(rm::Rm) = "rm",
    /// Remove images
    Rmi(rmi::Rmi) = "rmi",
    /// Create a container and run it
    Run(run::Run) = "run",
    /// Write images into a tar archive
    Save(save::Save) = "save",
    /// Look for images in a registry
    Search(search::Search) = "search",
    /// Start containers
    Start(start::Start) = "start",
    /// Show what containers use
    Stats(stats::Stats) = "stats",
    /// End containers
    Stop(stop::Stop) = "stop",
    /// Look at the engine and its disk
    System(nouns::System) = "system",
    /// Give an image one more name
    Tag(tag::Tag) = "tag",
    /// Show the processes of a container
    Top(top::Top) = "top",
    /// Show what the last start of a container did, and how long it took
    Trace(trace::Trace) = "trace",
    /// Let frozen containers go on
    Unpause(unpause::Unpause) = "unpause",
    /// Run all services in the foreground
    Up(up::Up) = "up",
    /// Change the limits of containers
    Update(update::Update) = "update",
    /// Show the versions of the command and the engine
    Version(version::Version) = "version",
    /// Manage volumes
    Volume(nouns::Volume) = "volume",
    /// Wait for containers to end, and print their exit codes
    Wait(wait::Wait) = "wait",
} }

impl Verb {
    /// Whether the verb serves until it is told to stop.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self, Self::Up(_))
    }
}
