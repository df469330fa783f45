//! What is known about registries: `[image]` and `[image.registry."host:port"]`
//! of the configuration, other engines' directories, and who we are to them.
//!
//! The own table wins, key by key; what it does not say, the directories may.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use gantry_credentials::{Credentials, DockerConfig, Server};
use gantry_oci::Reference;
use gantry_oci::reference::{DEFAULT_DOMAIN, OWN_REGISTRY};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::certs_dir::{self, Said};
use super::error::RegistryError;
use super::site::{API, Abilities, Address, PemFile, Site, Tls};

/// One registry's table in the configuration.
#[derive(Clone, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct HostConfig {
    /// True: HTTP, or HTTPS without looking at the certificate, will do.
    /// Absent: only for a registry on this machine (127.0.0.0/8, ::1,
    /// localhost) that no authority is named for.
    pub insecure: Option<bool>,
    /// Registries that are asked first, in this order.
    pub mirrors: Vec<Mirror>,
    /// PEM files of authorities that are trusted besides the system's.
    pub ca: OneOrMany,
    /// PEM files of the certificate and the key that the registry is shown.
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// Sent with every request.
    pub headers: BTreeMap<String, String>,
    /// Name and password, for an engine that runs on its own.
    pub username: Option<String>,
    pub password: Option<String>,
}

impl fmt::Debug for HostConfig {
    /// Without what is secret: the password, and the values of headers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostConfig")
            .field("insecure", &self.insecure)
            .field("mirrors", &self.mirrors)
            .field("ca", &self.ca)
            .field("client_cert", &self.client_cert)
            .field("headers", &self.headers.keys())
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A registry that has what another has: its address, or a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mirror {
    /// `[http://|https://]HOST[:PORT][/PATH]`.
    pub url: String,
    /// It serves many registries, and is told which one is meant (`?ns=HOST`).
    pub pull_through: bool,
    /// False: it is asked for content by digest only, and never what a tag stands for.
    pub resolve: bool,
}

impl From<&str> for Mirror {
    fn from(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            pull_through: false,
            resolve: true,
        }
    }
}

impl<'de> Deserialize<'de> for Mirror {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            url: String,
            #[serde(default)]
            pull_through: bool,
            resolve: Option<bool>,
        }
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Mirror;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mirror's address, or a table with its url")
            }

            fn visit_str<E>(self, url: &str) -> Result<Mirror, E> {
                Ok(url.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Mirror, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Mirror {
                    url: table.url,
                    pull_through: table.pull_through,
                    resolve: table.resolve.unwrap_or(true),
                })
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// One path, or a list of paths.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct OneOrMany(pub Vec<PathBuf>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a list of paths")
            }

            fn visit_str<E>(self, path: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![path.into()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(OneOrMany(paths))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// What is known about registries.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Tables by "host" or "host:port".
    pub tables: HashMap<String, HostConfig>,
    /// Mirrors of Docker Hub, where its table names none.
    pub mirrors: Vec<Mirror>,
    /// Directories in Docker's and containerd's layout; the first that knows a host counts.
    pub certs_dirs: Vec<PathBuf>,
    /// Docker's `config.json`, which may not exist.
    pub docker_config: Option<PathBuf>,
    /// The Unix socket of the engine's own registry ([`OWN_REGISTRY`]). Absent:
    /// there is none.
    pub own_registry: Option<PathBuf>,
}

/// Where a registry's images are: its mirrors, and itself.
pub(super) struct Layout {
    pub(super) mirrors: Vec<Site>,
    pub(super) registry: Site,
}

pub(super) const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// A host's name and, where that differs, the host of its API.
pub(super) fn names(host: &str) -> Vec<&str> {
    if host == DOCKER_HUB_API || host == DEFAULT_DOMAIN {
        vec![DEFAULT_DOMAIN, DOCKER_HUB_API]
    } else {
        vec![host]
    }
}

impl Hosts {
    /// What of the tables cannot be used, before anybody relies on it.
    pub fn check(&self) -> Result<(), RegistryError> {
        for (host, table) in &self.tables {
            if is_own(host) {
                return Err(RegistryError::Configuration {
                    host: host.clone(),
                    reason: "the engine's own registry is reached on its socket, and has nothing to configure".to_owned(),
                });
            }
            self.own_site(host, table, &Said::default())?;
            for mirror in &table.mirrors {
                self.mirror(host, mirror)?;
            }
        }
        for mirror in &self.mirrors {
            self.mirror(DEFAULT_DOMAIN, mirror)?;
        }
        Ok(())
    }

    fn table(&self, host: &str) -> Option<&HostConfig> {
        names(host)
            .into_iter()
            .find_map(|name| self.tables.get(name))
    }

    /// Whether the host's own table says that it is insecure.
    pub(super) fn is_declared_insecure(&self, host: &str) -> bool {
        self.table(host).and_then(|table| table.insecure) == Some(true)
    }

    /// How a host is spoken to as itself.
    pub(super) fn site(&self, host: &str) -> Result<Site, RegistryError> {
        if is_own(host) {
            return self.own_registry();
        }
        let said = certs_dir::look_up(&self.certs_dirs, &names(host))?;
        let default = HostConfig::default();
        self.own_site(host, self.table(host).unwrap_or(&default), &said)
    }

    /// The engine's own registry.
    fn own_registry(&self) -> Result<Site, RegistryError> {
        let socket = self.own_registry.clone();
        let missing = || RegistryError::Configuration {
            host: OWN_REGISTRY.to_owned(),
            reason: "this image service belongs to no engine with a registry".to_owned(),
        };
        Ok(Site {
            host: OWN_REGISTRY.to_owned(),
            scheme: Some("http"),
            secrets_in_clear: false,
            socket: Some(socket.ok_or_else(missing)?),
            base: API.to_owned(),
            namespace: None,
            tls: Tls::default(),
            headers: Vec::new(),
            abilities: Abilities::ALL,
        })
    }

    /// A host that a directory names, corrected by the host's own table.
    fn corrected(&self, mut site: Site) -> Result<Site, RegistryError> {
        if is_own(&site.host) {
            let own = self.own_registry()?;
            (site.host, site.scheme, site.socket) = (own.host, own.scheme, own.socket);
            (site.tls, site.secrets_in_clear) = (own.tls, false);
            return Ok(site);
        }
        if site.scheme == Some("http") {
            match self.table(&site.host).and_then(|table| table.insecure) {
                Some(false) => (site.scheme, site.secrets_in_clear) = (Some("https"), false),
                Some(true) => site.secrets_in_clear = true,
                None => site.secrets_in_clear |= is_local(&site.host),
            }
        }
        Ok(site)
    }

    fn own_site(&self, host: &str, table: &HostConfig, said: &Said) -> Result<Site, RegistryError> {
        let wrong = |reason: String| RegistryError::Configuration {
            host: host.to_owned(),
            reason,
        };
        let api = if host == DEFAULT_DOMAIN {
            DOCKER_HUB_API
        } else {
            host
        };
        let mut site = match said.server.clone() {
            Some(server) => self.corrected(server)?,
            None => Site {
                host: api.to_owned(),
                scheme: None,
                secrets_in_clear: false,
                socket: None,
                base: API.to_owned(),
                namespace: None,
                tls: said.tls.clone(),
                headers: Vec::new(),
                abilities: Abilities::ALL,
            },
        };
        if site.socket.is_some() {
            return Ok(site);
        }
        if !table.ca.0.is_empty() {
            site.tls.authorities = table.ca.0.iter().map(|path| PemFile::at(path)).collect();
        }
        match (&table.client_cert, &table.client_key) {
            (Some(certificate), Some(key)) => {
                site.tls.identities = vec![(PemFile::at(certificate), PemFile::at(key))];
            }
            (None, None) => {}
            _ => {
                let both = "client_cert and client_key must be set both, or neither";
                return Err(wrong(both.to_owned()));
            }
        }
        match table.insecure {
            Some(insecure) => {
                site.tls.anybody = insecure;
                site.secrets_in_clear = insecure;
                if !insecure {
                    site.scheme = Some("https");
                }
            }
            // A directory that says "skip_verify" says nothing of HTTP.
            None if site.tls.anybody => site.scheme = site.scheme.or(Some("https")),
            // Who names an authority wants it to be looked at.
            None if site.scheme.is_none() && site.tls.authorities.is_empty() => {
                site.tls.anybody = is_local(&site.host);
                site.secrets_in_clear = site.tls.anybody;
            }
            None => {}
        }
        for (name, value) in &table.headers {
            let header = certs_dir::header(name, value).map_err(wrong)?;
            if !site.is_public() {
                site.headers.push(header);
            }
        }
        Ok(site)
    }

    /// A mirror of `host` that the configuration names.
    fn mirror(&self, host: &str, mirror: &Mirror) -> Result<Site, RegistryError> {
        let address =
            Address::parse(&mirror.url).map_err(|reason| RegistryError::Configuration {
                host: host.to_owned(),
                reason: format!("the mirror {reason}"),
            })?;
        let mut site = self.site(&address.host)?;
        site.base = address.base(false);
        if site.socket.is_none() {
            if site.host != address.host {
                // Its directory declares another host for it, which is not asked here.
                (site.scheme, site.secrets_in_clear) = (None, false);
            }
            site.scheme = address.scheme.or(site.scheme);
            site.host = address.host;
            if site.is_public() {
                site.headers.clear();
            }
        }
        site.namespace = mirror.pull_through.then(|| names(host)[0].to_owned());
        site.abilities = Abilities {
            pull: true,
            resolve: mirror.resolve,
            push: false,
        };
        Ok(site)
    }

    /// Where the images of a reference's registry are.
    pub(super) fn layout(&self, reference: &Reference) -> Result<Layout, RegistryError> {
        let domain = reference.domain();
        if is_own(domain) {
            return Ok(Layout {
                mirrors: Vec::new(),
                registry: self.own_registry()?,
            });
        }
        let said = certs_dir::look_up(&self.certs_dirs, &names(domain))?;
        let default = HostConfig::default();
        let table = self.table(domain).unwrap_or(&default);
        let registry = self.own_site(domain, table, &said)?;
        let mirrors = if !table.mirrors.is_empty() {
            &table.mirrors
        } else if domain == DEFAULT_DOMAIN {
            &self.mirrors
        } else {
            &default.mirrors
        };
        let mirrors = if mirrors.is_empty() {
            let sites = said.hosts.into_iter().map(|site| self.corrected(site));
            sites.collect::<Result<_, _>>()?
        } else {
            let sites = mirrors.iter().map(|mirror| self.mirror(domain, mirror));
            sites.collect::<Result<_, _>>()?
        };
        Ok(Layout { mirrors, registry })
    }

    /// Credentials of the configuration for a registry, if there are any.
    /// Docker's file is read each time: a `docker login` counts at once.
    pub(super) async fn credentials(
        &self,
        host: &str,
    ) -> Result<Option<Credentials>, RegistryError> {
        if is_own(host) {
            return Ok(None);
        }
        if let Some(table) = self.table(host)
            && let (Some(username), Some(password)) = (&table.username, &table.password)
        {
            return Ok(Some(Credentials::Password {
                username: username.clone(),
                password: password.clone(),
            }));
        }
        let Some(path) = &self.docker_config else {
            return Ok(None);
        };
        let failed = |source| RegistryError::Credentials {
            host: host.to_owned(),
            source,
        };
        let config = DockerConfig::read(path).map_err(failed)?;
        config.find(&Server::new(host)).await.map_err(failed)
    }
}

/// Whether a host is the engine's own registry, in whatever case it is written.
pub(super) fn is_own(host: &str) -> bool {
    host.eq_ignore_ascii_case(OWN_REGISTRY)
}

/// Whether a registry is on this machine.
pub(super) fn is_local(host: &str) -> bool {
    let bare = host_without_port(host);
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn host_without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
