//! Registries that are not ours: the Debian package's, and one that lies.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response as Answer;
use bytes::Bytes;
use hyper::Method;
use tempfile::TempDir;

use crate::http;
use crate::image::{Blob, Image};

/// "secret", as bcrypt has it.
const SECRET: &str = "$2b$04$hnPTsPXGOfh2Q5m9a4u84uDPxq94Pno05YwtxARy4KKHOefrcusEO";

/// `docker-registry` of the Debian package of that name, on a port of its own.
#[derive(Debug)]
pub struct ForeignRegistry {
    child: Child,
    /// "127.0.0.1:PORT".
    pub address: String,
    _storage: TempDir,
}

impl ForeignRegistry {
    /// # Errors
    /// The package is not installed (`make test` installs it), or it does not
    /// start.
    pub fn start() -> Result<Self> {
        Self::with("")
    }

    /// The same, for the user "bob" with the password "secret" only.
    ///
    /// # Errors
    /// As [`ForeignRegistry::start`].
    pub fn with_login() -> Result<Self> {
        Self::with("auth:\n  htpasswd: {realm: tests, path: PASSWORDS}\n")
    }

    fn with(more: &str) -> Result<Self> {
        let storage = tempfile::Builder::new().prefix("gantry-reg-").tempdir()?;
        let config = storage.path().join("config.yml");
        let passwords = storage.path().join("htpasswd");
        std::fs::write(&passwords, format!("bob:{SECRET}\n"))?;
        let more = more.replace("PASSWORDS", &format!("{passwords:?}"));
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {:?}}}\n  delete: {{enabled: true}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n{more}",
                storage.path().join("data")
            ),
        )?;
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("docker-registry: install the Debian package of that name")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        // It says which port the kernel gave it: the event to wait for.
        let mut said = String::new();
        let address = loop {
            let Some(line) = lines.next().transpose()? else {
                let _ = child.wait();
                anyhow::bail!("docker-registry ended at its start: {said}");
            };
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest
                    .trim_end_matches(|c: char| !c.is_ascii_digit())
                    .split(['"', ' ', ','])
                    .next()
                    .unwrap_or_default()
                    .to_owned();
            }
            said.push_str(&line);
            said.push('\n');
        };
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        address
            .parse::<SocketAddr>()
            .with_context(|| format!("docker-registry listens on {address:?}"))?;
        Ok(Self {
            child,
            address,
            _storage: storage,
        })
    }
}

impl Drop for ForeignRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pushes `image` as `repository:tag`, blob by blob, as the distribution
/// specification's "Pushing" section has it.
///
/// # Errors
/// The registry refuses a step.
pub fn push(address: &str, repository: &str, tag: &str, image: &Image) -> Result<()> {
    push_content(address, repository, image)?;
    push_manifest(address, repository, tag, &image.manifest)
}

/// Pushes what `image` names, and its manifest under its digest only.
///
/// # Errors
/// As [`push`].
pub fn push_content(address: &str, repository: &str, image: &Image) -> Result<()> {
    for blob in &image.blobs {
        push_blob(address, repository, blob)?;
    }
    push_manifest(address, repository, &image.manifest.digest, &image.manifest)
}

fn push_blob(address: &str, repository: &str, blob: &Blob) -> Result<()> {
    let base = format!("http://{address}");
    let url = format!("{base}/v2/{repository}/blobs/uploads/");
    let opened = http::request(Method::POST, &url, &[], Bytes::new())?;
    ensure!(
        opened.status == 202,
        "POST {url}: {} {}",
        opened.status,
        opened.text()
    );
    let location = opened.header("location").context("no Location")?;
    let mut location = if location.starts_with('/') {
        format!("{base}{location}")
    } else {
        location.to_owned()
    };
    location.push(if location.contains('?') { '&' } else { '?' });
    location.push_str("digest=");
    location.push_str(&blob.digest.replace(':', "%3A"));
    let put = http::request(
        Method::PUT,
        &location,
        &[("content-type", "application/octet-stream")],
        blob.bytes.clone(),
    )?;
    ensure!(
        put.status == 201,
        "PUT {location}: {} {}",
        put.status,
        put.text()
    );
    Ok(())
}

/// # Errors
/// The registry refuses it.
pub fn push_manifest(
    address: &str,
    repository: &str,
    reference: &str,
    manifest: &Blob,
) -> Result<()> {
    let url = format!("http://{address}/v2/{repository}/manifests/{reference}");
    let put = http::request(
        Method::PUT,
        &url,
        &[("content-type", manifest.media_type.as_str())],
        manifest.bytes.clone(),
    )?;
    ensure!(
        put.status == 201,
        "PUT {url}: {} {}",
        put.status,
        put.text()
    );
    Ok(())
}

/// What [`LyingRegistry`] answers on one path.
#[derive(Clone, Debug)]
pub struct Page {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// Promise so many bytes, whatever `body` holds, and hang up at its end.
    pub promised: Option<u64>,
}

/// A registry that answers what a test tells it to, true or not.
#[derive(Debug)]
pub struct LyingRegistry {
    /// "127.0.0.1:PORT".
    pub address: String,
    pages: Pages,
    server: tokio::task::JoinHandle<()>,
}

type Pages = Arc<Mutex<BTreeMap<String, Page>>>;

impl LyingRegistry {
    /// # Errors
    /// No port is free.
    pub fn start() -> Result<Self> {
        let pages: Pages = Arc::default();
        let listener = http::runtime().block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?.to_string();
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&pages));
        let server = http::runtime().spawn(async move {
            // It ends with the task.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            address,
            pages,
            server,
        })
    }

    /// Answers `page` on `path`.
    pub fn set(&self, path: &str, page: Page) {
        let mut pages = match self.pages.lock() {
            Ok(pages) => pages,
            Err(poisoned) => poisoned.into_inner(),
        };
        pages.insert(path.to_owned(), page);
    }

    /// Serves `image` as `repository:tag`, truthfully; [`LyingRegistry::set`]
    /// then replaces what is to be a lie.
    pub fn serve(&self, repository: &str, tag: &str, image: &Image) {
        for blob in &image.blobs {
            self.set(&blob_path(repository, blob), blob_page(blob));
        }
        for reference in [tag, &image.manifest.digest] {
            self.set(
                &format!("/v2/{repository}/manifests/{reference}"),
                blob_page(&image.manifest),
            );
        }
    }
}

impl Drop for LyingRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[must_use]
pub fn blob_path(repository: &str, blob: &Blob) -> String {
    format!("/v2/{repository}/blobs/{}", blob.digest)
}

/// The truthful page of a blob or a manifest.
#[must_use]
pub fn blob_page(blob: &Blob) -> Page {
    Page {
        status: 200,
        headers: vec![
            ("content-type".to_owned(), blob.media_type.clone()),
            ("docker-content-digest".to_owned(), blob.digest.clone()),
        ],
        body: Bytes::from(blob.bytes.clone()),
        promised: None,
    }
}

async fn answer(State(pages): State<Pages>, request: Request) -> Answer {
    let path = request.uri().path().to_owned();
    let page = match pages.lock() {
        Ok(pages) => pages.get(&path).cloned(),
        Err(poisoned) => poisoned.into_inner().get(&path).cloned(),
    };
    let page = page.unwrap_or_else(|| Page {
        status: if path == "/v2/" { 200 } else { 404 },
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: Bytes::from_static(
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
        ),
        promised: None,
    });
    let mut answer = Answer::builder().status(page.status);
    for (name, value) in &page.headers {
        answer = answer.header(name, value);
    }
    let body = match page.promised {
        None => Body::from(page.body),
        Some(promised) => {
            answer = answer.header("content-length", promised);
            let chunks = [
                Ok(page.body),
                Err(std::io::Error::other("the test wants it to break off here")),
            ];
            Body::from_stream(futures::stream::iter(chunks))
        }
    };
    answer.body(body).unwrap_or_default()
}
