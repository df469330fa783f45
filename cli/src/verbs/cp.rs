//! `gantry cp`: copies files out of a container and into it.
//!
//! Where a copy goes, and what it is called there, is decided here, by the rules
//! of Docker (which are those of cp(1), made strict): see [`Target`]. The engine
//! resolves every path inside the container; here nothing is resolved but paths
//! of this machine.

use std::io::IsTerminal as _;
use std::path::Path;

use clap::Args;
use gantry_archive::unpack::Owner;
use gantry_proto::gateway::v1::{CopyInOpen, CopyOutRequest, StatPathRequest};
use gantry_proto::runtime::v1::PathStat;
use rustix::fs::FileType;

use crate::copying::{self, Source};
use crate::display;
use crate::exit::Failure;
use crate::session::Session;

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// Keep owners and groups by their numbers
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to, and not the link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing of what was copied
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, PATH, or - for a tar archive on standard input
    #[arg(allow_hyphen_values = true)]
    source: String,
    /// PATH, CONTAINER:PATH, or - for a tar archive on standard output
    #[arg(value_name = "DESTINATION", allow_hyphen_values = true)]
    destination: String,
}

/// What is named on the command line.
#[derive(Debug, PartialEq, Eq)]
enum Named<'a> {
    Here(&'a str),
    Inside { container: &'a str, path: &'a str },
}

fn named(text: &str) -> Named<'_> {
    match text.split_once(':') {
        // A path with a colon in it begins with "/" or ".".
        Some((container, path)) if !text.starts_with(['/', '.']) => {
            Named::Inside { container, path }
        }
        _ => Named::Here(text),
    }
}

/// Where something is to be copied to, and whether that is there.
#[derive(Debug)]
struct Target {
    path: String,
    exists: bool,
    directory: bool,
}

impl Target {
    /// The directory that the copy is put into, and its name there; none: its own.
    fn place(&self, source_is_directory: bool) -> Result<(String, Option<String>), Failure> {
        if self.exists && self.directory {
            return Ok((self.path.clone(), None));
        }
        if self.exists && source_is_directory {
            return Err(Failure::new(format!(
                "cannot copy a directory over the file {:?}",
                self.path
            )));
        }
        if !self.exists && !source_is_directory && asserts_directory(&self.path) {
            return Err(Failure::new(format!("no such directory: {:?}", self.path)));
        }
        let (directory, name) = split(&self.path);
        Ok((directory, Some(name)))
    }
}

/// Whether a path says of itself that it is a directory.
fn asserts_directory(path: &str) -> bool {
    path.ends_with('/') || is_content(path)
}

/// Whether a path means what is in a directory, and not the directory.
fn is_content(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// A path without `.`, `..` and double slashes, by its text alone.
fn cleaned(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." if absolute || components.last().is_some_and(|last| *last != "..") => {
                components.pop();
            }
            plain => components.push(plain),
        }
    }
    let text = components.join("/");
    match (absolute, text.is_empty()) {
        (true, _) => format!("/{text}"),
        (false, true) => ".".to_owned(),
        (false, false) => text,
    }
}

/// The directory of a path and its last component, both cleaned.
fn split(path: &str) -> (String, String) {
    let path = cleaned(path);
    match path.rsplit_once('/') {
        Some(("", name)) => ("/".to_owned(), name.to_owned()),
        Some((directory, name)) => (directory.to_owned(), name.to_owned()),
        None => (".".to_owned(), path),
    }
}

/// The path on this machine, absolute, with what its end says of it.
fn absolute(path: &str) -> Result<String, Failure> {
    let mut whole = cleaned(&match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{}/{path}", std::env::current_dir()?.display()),
    });
    if is_content(path) {
        whole.push_str("/.");
    } else if path.ends_with('/') && !whole.ends_with('/') {
        whole.push('/');
    }
    Ok(whole)
}

impl Cp {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        if self.source.is_empty() || self.destination.is_empty() {
            return Err(Failure::new(
                "neither the source nor the destination can be empty",
            ));
        }
        for text in [&self.source, &self.destination] {
            if matches!(named(text), Named::Inside { path: "", .. }) {
                return Err(Failure::new(format!(
                    "{text:?} has no path: say {text}/ for the container's root"
                )));
            }
        }
        let (copied, shown) = match (named(&self.source), named(&self.destination)) {
            (Named::Inside { container, path }, Named::Here(destination)) => {
                let copied = self.copy_out(session, container, path, destination).await?;
                (copied, destination)
            }
            (Named::Here(source), Named::Inside { container, path }) => {
                let copied = self.copy_in(session, source, container, path).await?;
                (copied, self.destination.as_str())
            }
            (Named::Inside { .. }, Named::Inside { .. }) => {
                return Err(Failure::new("copying between containers is not supported"));
            }
            (Named::Here(_), Named::Here(_)) => {
                return Err(Failure::new("must specify at least one container source"));
            }
        };
        if !self.quiet && shown != "-" && std::io::stdout().is_terminal() {
            let size = display::exact_size(copied);
            eprintln!("Successfully copied {size} to {shown}");
        }
        Ok(0)
    }

    /// Out of a container. How many bytes the archive had.
    async fn copy_out(
        &self,
        session: &Session,
        container: &str,
        path: &str,
        destination: &str,
    ) -> Result<u64, Failure> {
        let mut request = CopyOutRequest {
            container: container.to_owned(),
            path: path.to_owned(),
            follow: self.follow_link,
            name: String::new(),
        };
        if destination == "-" {
            return copying::to_stdout(session, request).await;
        }
        let target = local_target(&absolute(destination)?)?;
        let stat = stat(session, container, path, self.follow_link).await?;
        let is_directory = kind(&stat) == FileType::Directory;
        let (directory, name) = target.place(is_directory)?;
        request.name = name.unwrap_or_default();
        // Who is not root may give nothing away.
        let owner = if self.archive && rustix::process::geteuid().is_root() {
            Owner::Kept
        } else {
            Owner::Maker
        };
        copying::to_directory(session, request, Path::new(&directory), owner).await
    }

    /// Into a container. How many bytes the archive had.
    async fn copy_in(
        &self,
        session: &Session,
        source: &str,
        container: &str,
        path: &str,
    ) -> Result<u64, Failure> {
        let mut open = CopyInOpen {
            container: container.to_owned(),
            path: path.to_owned(),
            keep_owner: self.archive,
        };
        if source == "-" {
            let target = inside_target(session, container, path).await?;
            if !target.directory {
                let whole = format!("{container}:{path}");
                return Err(Failure::new(format!(
                    "destination {whole:?} must be a directory"
                )));
            }
            // Whoever made the archive said whose its files are.
            open.keep_owner = true;
            return copying::from_stdin(session, open).await;
        }
        // What is wrong with the source is said before the engine is asked.
        let source = absolute(source)?;
        let found = Source::open(&source, self.follow_link)?;
        let target = inside_target(session, container, path).await?;
        let (directory, name) = target.place(found.is_directory())?;
        open.path = directory;
        let name = name.unwrap_or_else(|| match is_content(&source) {
            true => ".".to_owned(),
            false => split(&source).1,
        });
        copying::from_here(session, open, found, name).await
    }
}

fn kind(stat: &PathStat) -> FileType {
    FileType::from_raw_mode(stat.mode)
}

async fn stat(
    session: &Session,
    container: &str,
    path: &str,
    follow: bool,
) -> Result<PathStat, Failure> {
    let request = StatPathRequest {
        container: container.to_owned(),
        path: path.to_owned(),
        follow,
    };
    let answer = session.engine.containers().stat_path(request).await?;
    Ok(answer.into_inner().stat.unwrap_or_default())
}

/// A destination inside a container, its last links followed.
async fn inside_target(session: &Session, container: &str, path: &str) -> Result<Target, Failure> {
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let found = match stat(session, container, &at, false).await {
            Ok(found) => found,
            Err(failure) if failure.is("PATH_NOT_FOUND") || failure.is("NOT_A_DIRECTORY") => {
                return Ok(Target {
                    path: at,
                    exists: false,
                    directory: false,
                });
            }
            Err(failure) => return Err(failure),
        };
        let directory = match kind(&found) {
            FileType::Symlink if found.link_resolved.is_empty() => {
                let whole = format!("{container}:{path}");
                return Err(Failure::new(format!(
                    "the link {whole:?} leads nowhere: what it passes is missing, or it leads to itself"
                )));
            }
            FileType::Symlink => {
                at = found.link_resolved;
                continue;
            }
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => {
                let whole = format!("{container}:{path}");
                return Err(Failure::new(format!(
                    "destination {whole:?} must be a directory or a regular file"
                )));
            }
        };
        return Ok(Target {
            path: at,
            exists: true,
            directory,
        });
    }
    Err(Failure::new(format!("too many links in {path:?}")))
}

/// A destination on this machine, its last links followed.
fn local_target(path: &str) -> Result<Target, Failure> {
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        let trimmed = at.trim_end_matches("/.").trim_end_matches('/');
        let trimmed = if trimmed.is_empty() { "/" } else { trimmed };
        let found = match Path::new(trimmed).symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                real_directory(trimmed)?;
                return Ok(Target {
                    path: at,
                    exists: false,
                    directory: false,
                });
            }
            Err(error) => return Err(Failure::new(format!("{at:?}: {error}"))),
        };
        if found.is_symlink() {
            at = linked(trimmed, &Path::new(trimmed).read_link()?)?;
            continue;
        }
        if !found.is_dir() && !found.is_file() {
            return Err(Failure::new(format!(
                "invalid output path: {path:?} must be a directory or a regular file"
            )));
        }
        return Ok(Target {
            path: at,
            exists: true,
            directory: found.is_dir(),
        });
    }
    Err(Failure::new(format!("too many links in {path:?}")))
}

/// The directory that a path's last component is in, without links.
fn real_directory(path: &str) -> Result<String, Failure> {
    let directory = match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((directory, _)) => directory,
        None => ".",
    };
    let real = Path::new(directory).canonicalize();
    match real {
        Ok(real) if real.is_dir() => text(&real),
        _ => Err(Failure::new(format!(
            "invalid output path: directory {directory:?} does not exist"
        ))),
    }
}

/// Where a link leads, absolute. `..` counts from where the link is, and after a
/// directory that is a link from where that leads: the last component's directory
/// has no links any more.
fn linked(link: &str, target: &Path) -> Result<String, Failure> {
    let target = text(target)?;
    let whole = match target.starts_with('/') {
        true => target.clone(),
        false => format!("{}/{target}", real_directory(link)?),
    };
    let end = if asserts_directory(&target) { "/" } else { "" };
    let trimmed = whole.trim_end_matches("/.").trim_end_matches('/');
    if trimmed.is_empty() || trimmed.ends_with("/..") {
        let real = Path::new(&whole).canonicalize()?;
        return Ok(format!("{}{end}", text(&real)?));
    }
    let (_, name) = split_text(trimmed);
    Ok(format!("{}/{name}{end}", real_directory(trimmed)?))
}

fn split_text(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or((".", path))
}

fn text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::new(format!(
            "the link leads to {path:?}, which is not UTF-8; name a path without it"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_container_has_its_name_before_a_colon() {
        let inside = |container, path| Named::Inside { container, path };
        for (text, expected) in [
            ("c:/etc", inside("c", "/etc")),
            ("c:etc:x", inside("c", "etc:x")),
            ("c:", inside("c", "")),
            ("/a:b", Named::Here("/a:b")),
            ("./a:b", Named::Here("./a:b")),
            ("a", Named::Here("a")),
            ("-", Named::Here("-")),
        ] {
            assert_eq!(named(text), expected, "{text}");
        }
    }

    #[test]
    fn a_copy_gets_its_place_and_name_as_docker_has_it() {
        let place = |path: &str, exists, directory, source| {
            let target = Target {
                path: path.to_owned(),
                exists,
                directory,
            };
            target.place(source).ok()
        };
        let at = |directory: &str, name: &str| Some((directory.to_owned(), Some(name.to_owned())));
        // An existing directory takes anything under its own name.
        assert_eq!(
            place("/d", true, true, false),
            Some(("/d".to_owned(), None))
        );
        assert_eq!(place("/d", true, true, true), Some(("/d".to_owned(), None)));
        // An existing file is replaced by a file only.
        assert_eq!(place("/a/f", true, false, false), at("/a", "f"));
        assert_eq!(place("/a/f", true, false, true), None);
        // What is not there gets the name, but no directory is made for a file.
        assert_eq!(place("/a/n", false, false, false), at("/a", "n"));
        assert_eq!(place("/a/n", false, false, true), at("/a", "n"));
        assert_eq!(place("/a/n/", false, false, true), at("/a", "n"));
        assert_eq!(place("/a/n/", false, false, false), None);
    }

    #[test]
    fn a_link_of_this_machine_leads_where_the_kernel_takes_it() {
        use std::os::unix::fs::symlink;
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("x/y")).unwrap();
        std::fs::write(root.join("x/file"), "").unwrap();
        symlink(root.join("x/y"), root.join("lk")).unwrap();
        symlink("../z", root.join("x/y/inner")).unwrap();
        symlink("../../lk/../new", root.join("x/y/back")).unwrap();
        symlink("..", root.join("x/y/up")).unwrap();
        symlink("../file", root.join("x/y/file")).unwrap();
        symlink("missing/new", root.join("lost")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let place = |path: &str| {
            let target = local_target(&format!("{}/{path}", root.display())).ok()?;
            let found = target.place(false).ok()?;
            let directory = found.0.strip_prefix(root.to_str()?)?.to_owned();
            Some((directory, found.1))
        };
        let at = |directory: &str, name: &str| Some((directory.to_owned(), Some(name.to_owned())));
        assert_eq!(place("lk/inner"), at("/x", "z"));
        assert_eq!(place("lk/back"), at("/x", "new"));
        assert_eq!(place("lk/file"), at("/x", "file"));
        assert_eq!(place("lk/up"), Some(("/x".to_owned(), None)));
        assert_eq!(place("lk"), Some(("/x/y".to_owned(), None)));
        assert_eq!(place("lk/new"), at("/lk", "new"));
        assert_eq!(place("lost"), None);
        assert_eq!(place("loop"), None);
        assert_eq!(place("missing/new"), None);
    }

    #[test]
    fn paths_are_cleaned_by_their_text() {
        for (path, expected) in [
            ("/a/../b/./c//d/", "/b/c/d"),
            ("/..", "/"),
            ("a/..", "."),
            ("../a", "../a"),
            ("", "."),
        ] {
            assert_eq!(cleaned(path), expected, "{path}");
        }
        assert_eq!(absolute("/a/b/.").ok().as_deref(), Some("/a/b/."));
        assert_eq!(absolute("/a/b/").ok().as_deref(), Some("/a/b/"));
    }
}
