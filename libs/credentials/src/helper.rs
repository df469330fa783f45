//! Credential helpers: programs that keep credentials in a keychain.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::{Credentials, CredentialsError};

/// How long a helper may take. Some ask the person for a passphrase first.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of its output that are read.
const OUTPUT_MAX: u64 = 1 << 20;
/// The user name under which a helper keeps a token.
const TOKEN_USER: &str = "<token>";
/// What helpers say of a server that they have nothing for.
const NOTHING_KNOWN: [&str; 3] = [
    "credentials not found in native keychain",
    "no credentials server URL",
    "no credentials username",
];

/// One helper: `docker-credential-NAME` in `$PATH`.
#[derive(Clone, Debug)]
pub struct Helper {
    program: String,
    limit: Duration,
    search: Option<OsString>,
}

/// What helpers take and give.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl Helper {
    /// The helper of that name.
    pub fn named(name: &str) -> Result<Self, CredentialsError> {
        if name.is_empty() || name.contains('/') || name.contains('\0') {
            return Err(CredentialsError::HelperName {
                name: name.to_owned(),
            });
        }
        Ok(Self {
            program: format!("docker-credential-{name}"),
            limit: LIMIT,
            search: None,
        })
    }

    /// Looks for the program in other directories than `$PATH` has.
    #[must_use]
    pub fn searching(mut self, path: Option<OsString>) -> Self {
        self.search = path;
        self
    }

    /// Gives it another time limit.
    #[must_use]
    pub const fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The program's name.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The credentials that it keeps under a key.
    pub async fn get(&self, key: &str) -> Result<Option<Credentials>, CredentialsError> {
        let Some(answer) = self.run("get", key.as_bytes().to_vec()).await? else {
            return Ok(None);
        };
        let secret: Secret = self.understand("get", &answer)?;
        if secret.secret.is_empty() {
            return Ok(None);
        }
        Ok(Some(if secret.username == TOKEN_USER {
            Credentials::Identity {
                username: String::new(),
                token: secret.secret,
            }
        } else {
            Credentials::Password {
                username: secret.username,
                password: secret.secret,
            }
        }))
    }

    /// Lets it keep credentials under a key.
    pub async fn store(
        &self,
        key: &str,
        credentials: &Credentials,
    ) -> Result<(), CredentialsError> {
        let (username, secret) = match credentials {
            Credentials::Password { username, password } => (username.as_str(), password),
            Credentials::Identity { token, .. } => (TOKEN_USER, token),
        };
        let secret = Secret {
            server_url: key.to_owned(),
            username: username.to_owned(),
            secret: secret.clone(),
        };
        let input = serde_json::to_vec(&secret).map_err(|error| self.failed(error.to_string()))?;
        self.run("store", input).await.map(drop)
    }

    /// Lets it forget what it keeps under a key. False: it knew nothing.
    pub async fn erase(&self, key: &str) -> Result<bool, CredentialsError> {
        let erased = self.run("erase", key.as_bytes().to_vec()).await?;
        Ok(erased.is_some())
    }

    /// The keys that it has credentials for, each with the user's name.
    pub async fn list(&self) -> Result<BTreeMap<String, String>, CredentialsError> {
        match self.run("list", b"unused".to_vec()).await? {
            Some(answer) => self.understand("list", &answer),
            None => Ok(BTreeMap::new()),
        }
    }

    fn understand<T: for<'a> Deserialize<'a>>(
        &self,
        action: &str,
        answer: &[u8],
    ) -> Result<T, CredentialsError> {
        // What it said may be a secret, and is not repeated.
        serde_json::from_slice(answer)
            .map_err(|_| self.failed(format!("its answer to {action} is not understood")))
    }

    fn failed(&self, reason: String) -> CredentialsError {
        CredentialsError::Helper {
            program: self.program.clone(),
            reason,
        }
    }

    /// Its standard output; `None` where it says that it knows nothing.
    async fn run(&self, action: &str, input: Vec<u8>) -> Result<Option<Vec<u8>>, CredentialsError> {
        let mut command = Command::new(&self.program);
        command
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(search) = &self.search {
            command.env("PATH", search);
        }
        let child = command
            .spawn()
            .map_err(|source| CredentialsError::HelperMissing {
                program: self.program.clone(),
                source,
            })?;
        // Dropped with the future when the time is up, the child is killed.
        let talked = tokio::time::timeout(self.limit, talk(child, input)).await;
        let (success, output, complaint) = talked
            .map_err(|_| CredentialsError::HelperTimeout {
                program: self.program.clone(),
                limit: self.limit,
            })?
            .map_err(|error| self.failed(error.to_string()))?;
        if success {
            return Ok(Some(output));
        }
        let said = [&output, &complaint].map(|bytes| one_line(bytes));
        if said
            .iter()
            .any(|text| NOTHING_KNOWN.contains(&text.as_str()))
        {
            return Ok(None);
        }
        let reason = said.into_iter().find(|text| !text.is_empty());
        Err(self.failed(reason.unwrap_or_else(|| format!("{action} failed without a reason"))))
    }
}

/// Whether it succeeded, its standard output, and the beginning of its standard error.
async fn talk(mut child: Child, input: Vec<u8>) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin
            && let Err(error) = stdin.write_all(&input).await
            // One that needs no input may have ended without reading it.
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(error);
        }
        Ok(())
    };
    let (fed, output, complaint) = tokio::join!(feed, read(stdout), read(stderr));
    fed?;
    let status = child.wait().await?;
    Ok((status.success(), output?, complaint?))
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(200).collect()
}
