//! What other engines' directories say of a registry.
//!
//! ```text
//! DIRECTORY/HOST[:PORT]/hosts.toml                  containerd's: mirrors, and whom they trust
//! DIRECTORY/HOST[:PORT]/{*.crt, X.cert + X.key}     Docker's: authorities, and who we are
//! DIRECTORY/_default/…                              for hosts that have no directory of their own
//! ```
//!
//! Read anew for each pull and push, as the others do: a file that was put there counts at once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use http::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::error::RegistryError;
use super::hosts::OneOrMany;
use super::site::{Abilities, Address, PemFile, Site, Tls};

/// The longest `hosts.toml` that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// What a directory says of a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Said {
    /// The hosts to ask, in this order, before the registry itself.
    pub(super) hosts: Vec<Site>,
    /// The registry itself, where it is another host than its name says.
    pub(super) server: Option<Site>,
    /// For connections to the registry itself.
    pub(super) tls: Tls,
}

/// `hosts.toml`. Unknown keys are containerd's business.
#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<HostTable>>,
    #[serde(flatten)]
    own: HostTable,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: OneOrMany,
    client: Identities,
    skip_verify: bool,
    override_path: bool,
    header: BTreeMap<String, HeaderValues>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum HeaderValues {
    One(String),
    Many(Vec<String>),
}

/// Client certificates: a file with both parts, or pairs of certificate and key.
#[derive(Clone, Default)]
struct Identities(Vec<(PathBuf, PathBuf)>);

impl<'de> Deserialize<'de> for Identities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            One(PathBuf),
            Many(Vec<OneOrPair>),
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrPair {
            One(PathBuf),
            Pair((PathBuf, PathBuf)),
        }
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::One(file) => vec![(file.clone(), file)],
            Form::Many(list) => list
                .into_iter()
                .map(|entry| match entry {
                    OneOrPair::One(file) => (file.clone(), file),
                    OneOrPair::Pair(pair) => pair,
                })
                .collect(),
        }))
    }
}

/// What the first directory that knows the host says of it. `names` are the
/// host's names, the best first.
pub(super) fn look_up(directories: &[PathBuf], names: &[&str]) -> Result<Said, RegistryError> {
    for directory in directories {
        for name in names {
            // Where a colon cannot be in a file name, it is written with underscores.
            let spelled = name.replacen(':', "_", 1) + "_";
            for candidate in [*name, spelled.as_str()] {
                if let Some(said) = read(&directory.join(candidate), names)? {
                    return Ok(said);
                }
            }
        }
        if let Some(said) = read(&directory.join("_default"), names)? {
            return Ok(said);
        }
    }
    Ok(Said::default())
}

/// What one directory says; `None` where there is none.
fn read(directory: &Path, names: &[&str]) -> Result<Option<Said>, RegistryError> {
    let file = directory.join("hosts.toml");
    let unusable = |path: &Path, reason: String| RegistryError::HostsFile {
        path: path.display().to_string(),
        reason,
    };
    match fs::metadata(&file) {
        Ok(metadata) if metadata.len() > FILE_MAX => {
            return Err(unusable(
                &file,
                format!("it has more than {FILE_MAX} bytes"),
            ));
        }
        Ok(_) => {
            let text =
                fs::read_to_string(&file).map_err(|error| unusable(&file, error.to_string()))?;
            return parse(&text, directory, names)
                .map(Some)
                .map_err(|reason| unusable(&file, reason));
        }
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(unusable(&file, error.to_string())),
    }
    match docker_files(directory) {
        Ok(tls) => Ok(Some(Said {
            tls,
            ..Said::default()
        })),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(unusable(directory, error.to_string())),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Docker's layout: authorities end in `.crt`, client certificates in `.cert`, their keys in `.key`.
fn docker_files(directory: &Path) -> io::Result<Tls> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    files.sort();
    let mut tls = Tls::default();
    for file in &files {
        let pair = |extension: &str| {
            let other = file.with_extension(extension);
            if files.contains(&other) {
                Ok(other)
            } else {
                Err(io::Error::other(format!(
                    "{} is there without {}; an authority's certificate must end in .crt",
                    file.display(),
                    other.display()
                )))
            }
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(PemFile::at(file)),
            Some("cert") => {
                let key = pair("key")?;
                tls.identities.push((PemFile::at(file), PemFile::at(&key)));
            }
            Some("key") => _ = pair("cert")?,
            _ => {}
        }
    }
    Ok(tls)
}

fn parse(text: &str, directory: &Path, names: &[&str]) -> Result<Said, String> {
    let file: HostsFile = toml::from_str(text).map_err(|error| described(&error, text))?;
    let namespace = names.first().copied().unwrap_or_default();
    let mut tables: Vec<(String, Spanned<HostTable>)> = file.host.into_iter().collect();
    // A table's keys have no order, but the file's lines do, and that is what counts.
    tables.sort_by_key(|(_, table)| table.span().start);
    let hosts = tables
        .into_iter()
        .map(|(url, table)| site(&url, table.into_inner(), directory, names, namespace))
        .collect::<Result<_, _>>()?;
    let own_tls = tls(&file.own, directory);
    let server = file.server.filter(|server| !server.is_empty());
    let server = server
        .map(|url| site(&url, file.own, directory, names, namespace))
        .transpose()?;
    Ok(Said {
        hosts,
        server,
        tls: own_tls,
    })
}

/// An error of the parser without the line that it is in, which may hold a secret.
fn described(error: &toml::de::Error, text: &str) -> String {
    let message = error.message();
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message.to_owned(),
    }
}

fn tls(table: &HostTable, directory: &Path) -> Tls {
    let file = |path: &PathBuf| PemFile::at(&directory.join(path));
    Tls {
        anybody: table.skip_verify,
        authorities: table.ca.0.iter().map(file).collect(),
        identities: table
            .client
            .0
            .iter()
            .map(|(certificate, key)| (file(certificate), file(key)))
            .collect(),
    }
}

fn site(
    url: &str,
    table: HostTable,
    directory: &Path,
    names: &[&str],
    namespace: &str,
) -> Result<Site, String> {
    let address = Address::parse(url)?;
    let mut abilities = Abilities {
        pull: false,
        resolve: false,
        push: false,
    };
    match &table.capabilities {
        None => abilities = Abilities::ALL,
        Some(list) => {
            for ability in list {
                match ability.as_str() {
                    "pull" => abilities.pull = true,
                    "resolve" => abilities.resolve = true,
                    "push" => abilities.push = true,
                    other => return Err(format!("{url:?} has the unknown capability {other:?}")),
                }
            }
        }
    }
    let mut headers = Vec::new();
    for (name, values) in &table.header {
        let values = match values {
            HeaderValues::One(value) => std::slice::from_ref(value),
            HeaderValues::Many(values) => values,
        };
        for value in values {
            headers.push(header(name, value)?);
        }
    }
    let base = address.base(table.override_path);
    let tls = tls(&table, directory);
    let (host, scheme) = (address.host, Some(address.scheme.unwrap_or("https")));
    // "docker.io" is not where Docker Hub's API is.
    let host = match names.get(1) {
        Some(api) if host == namespace => (*api).to_owned(),
        _ => host,
    };
    let is_registry = names.contains(&host.as_str());
    Ok(Site {
        namespace: (!is_registry).then(|| namespace.to_owned()),
        base,
        scheme,
        // `http://` is how this file declares the registry itself insecure.
        secrets_in_clear: is_registry && scheme == Some("http"),
        socket: None,
        tls,
        headers,
        abilities,
        host,
    })
}

/// A header of a configuration.
pub(super) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    // The value may be a secret, which has no place in an error.
    let odd = || format!("{name:?} with its value is not a header of HTTP");
    let name = HeaderName::try_from(name).map_err(|_| odd())?;
    let mut value = HeaderValue::from_str(value).map_err(|_| odd())?;
    // It may well be a secret.
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
#[path = "certs_dir_tests.rs"]
mod tests;
