//! Docker's `config.json`.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::FlockOperation;
use serde_json::{Map, Value, json};

use crate::{Credentials, CredentialsError, Helper, Server};

/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// The file, as it was when it was read.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: PathBuf,
    document: Map<String, Value>,
    search: Option<OsString>,
}

/// Where credentials were put.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kept {
    /// In a helper: its program's name.
    Helper(String),
    /// In the file, where whoever may read it can read them.
    File,
}

impl DockerConfig {
    /// A person's file: `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub fn personal_path() -> Result<PathBuf, CredentialsError> {
        let set = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let directory = set("DOCKER_CONFIG").map(PathBuf::from);
        let directory =
            directory.or_else(|| set("HOME").map(|home| Path::new(&home).join(".docker")));
        directory
            .map(|directory| directory.join("config.json"))
            .ok_or(CredentialsError::Homeless)
    }

    /// Reads a file; one that is not there has nothing in it.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        let failed = |source| CredentialsError::File {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let malformed = |reason: String| CredentialsError::Malformed {
            path: path.to_owned(),
            reason,
        };
        let bytes = match fs::metadata(path) {
            Ok(metadata) if metadata.len() > FILE_MAX => {
                return Err(malformed(format!("it has more than {FILE_MAX} bytes")));
            }
            Ok(_) => fs::read(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        let document = if bytes.trim_ascii().is_empty() {
            Map::new()
        } else {
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?
        };
        Ok(Self {
            path: path.to_owned(),
            document,
            search: None,
        })
    }

    /// Looks for helpers in other directories than `$PATH` has.
    #[must_use]
    pub fn searching(mut self, path: Option<OsString>) -> Self {
        self.search = path;
        self
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The helper that has the credentials for a server, if one has.
    pub fn helper(&self, server: &Server) -> Result<Option<Helper>, CredentialsError> {
        let own = self
            .table("credHelpers")
            .and_then(|helpers| entry(helpers, server))
            .and_then(|(_, helper)| helper.as_str());
        let all = self.document.get("credsStore").and_then(Value::as_str);
        let name = own.filter(|name| !name.is_empty()).or(all);
        name.filter(|name| !name.is_empty())
            .map(|name| Ok(Helper::named(name)?.searching(self.search.clone())))
            .transpose()
    }

    fn table(&self, name: &str) -> Option<&Map<String, Value>> {
        self.document.get(name)?.as_object()
    }

    /// The credentials for a server, if there are any.
    pub async fn find(&self, server: &Server) -> Result<Option<Credentials>, CredentialsError> {
        if let Some(helper) = self.helper(server)?
            && let Some(found) = helper.get(server.key()).await?
        {
            return Ok(Some(found));
        }
        let found = self.table("auths").and_then(|auths| entry(auths, server));
        match found {
            Some((key, auth)) => decode(auth).map_err(|reason| CredentialsError::Malformed {
                path: self.path.clone(),
                reason: format!("the entry {key:?} of \"auths\" {reason}"),
            }),
            None => Ok(None),
        }
    }

    /// Keeps credentials for a server, in place of those there were: in its
    /// helper, else in the file.
    pub async fn keep(
        &mut self,
        server: &Server,
        credentials: &Credentials,
    ) -> Result<Kept, CredentialsError> {
        let helper = self.helper(server)?;
        if let Some(helper) = &helper {
            helper.store(server.key(), credentials).await?;
        }
        // As Docker does: an entry without a secret says that a helper has it.
        let auth = match (&helper, credentials) {
            (Some(_), _) => json!({}),
            (None, Credentials::Password { username, password }) => {
                json!({ "auth": STANDARD.encode(format!("{username}:{password}")) })
            }
            (None, Credentials::Identity { username, token }) => {
                json!({ "auth": STANDARD.encode(format!("{username}:")), "identitytoken": token })
            }
        };
        self.change(|document| {
            let auths = document
                .entry("auths")
                .or_insert_with(|| Value::Object(Map::new()));
            if !auths.is_object() {
                *auths = Value::Object(Map::new());
            }
            if let Some(auths) = auths.as_object_mut() {
                auths.retain(|key, _| !server.is_named_by(key));
                auths.insert(server.key().to_owned(), auth);
            }
            true
        })?;
        Ok(match helper {
            Some(helper) => Kept::Helper(helper.program().to_owned()),
            None => Kept::File,
        })
    }

    /// Forgets the credentials for a server, under all its spellings. False:
    /// there were none.
    pub async fn forget(&mut self, server: &Server) -> Result<bool, CredentialsError> {
        let mut forgot = false;
        if let Some(helper) = self.helper(server)? {
            let keys = helper.list().await?.into_keys();
            for key in keys.filter(|key| server.is_named_by(key)) {
                forgot |= helper.erase(&key).await?;
            }
        }
        let mut listed = false;
        self.change(|document| {
            let Some(auths) = document.get_mut("auths").and_then(Value::as_object_mut) else {
                return false;
            };
            let before = auths.len();
            auths.retain(|key, _| !server.is_named_by(key));
            listed = auths.len() < before;
            listed
        })?;
        Ok(forgot || listed)
    }

    /// Reads the file anew, changes it, and replaces it; nobody else does so meanwhile.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Map<String, Value>) -> bool,
    ) -> Result<(), CredentialsError> {
        // Where the name is a link, what it leads to is replaced, and not the link.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let failed = |action| {
            let path = path.clone();
            move |source| CredentialsError::File {
                action,
                path,
                source,
            }
        };
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new("."));
        if !directory.is_dir() {
            fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
            let private = Permissions::from_mode(0o700);
            fs::set_permissions(directory, private).map_err(failed("protect the directory of"))?;
        }
        let lock = File::open(directory).map_err(failed("lock the directory of"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| failed("lock the directory of")(error.into()))?;
        let mut document = Self::read(&path)?.document;
        if change(&mut document) {
            replace(&path, directory, &document).map_err(failed("write"))?;
            lock.sync_all().map_err(failed("write"))?;
        }
        self.document = document;
        Ok(())
    }
}

fn replace(path: &Path, directory: &Path, document: &Map<String, Value>) -> io::Result<()> {
    let mut text = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, tabs);
    serde::Serialize::serialize(document, &mut serializer)?;
    text.push(b'\n');
    // Made with mode 0600, and removed again if it does not come to the rename.
    let mut new = tempfile::Builder::new()
        .prefix(".config.json.")
        .tempfile_in(directory)?;
    new.write_all(&text)?;
    if let Ok(old) = fs::metadata(path) {
        // Under sudo it stays its owner's. Who may not give it away keeps it.
        std::os::unix::fs::fchown(new.as_file(), Some(old.uid()), Some(old.gid())).ok();
    }
    new.as_file().sync_all()?;
    new.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// A server's entry: under its own key first, then under another spelling.
fn entry<'a>(table: &'a Map<String, Value>, server: &Server) -> Option<(&'a String, &'a Value)> {
    let exact = [server.key(), server.host()];
    let exact = exact.into_iter().find_map(|key| table.get_key_value(key));
    exact.or_else(|| table.iter().find(|(key, _)| server.is_named_by(key)))
}

/// One entry of "auths". `None`: a helper has what belongs there.
fn decode(auth: &Value) -> Result<Option<Credentials>, String> {
    let text = |name: &str| auth.get(name).and_then(Value::as_str).unwrap_or_default();
    let (mut username, mut password) = (text("username").to_owned(), text("password").to_owned());
    let packed = text("auth").trim();
    if !packed.is_empty() {
        let decoded = STANDARD
            .decode(packed)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or("is not in base64")?;
        let pair = decoded.trim_end_matches('\0').split_once(':');
        let (name, secret) = pair.ok_or("is not of the form name:password")?;
        (username, password) = (name.to_owned(), secret.to_owned());
    }
    let token = text("identitytoken");
    if !token.is_empty() {
        return Ok(Some(Credentials::Identity {
            username,
            token: token.to_owned(),
        }));
    }
    Ok((!username.is_empty()).then_some(Credentials::Password { username, password }))
}
