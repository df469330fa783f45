//! What may lie between a client and a registry: TLS, and a network that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A file of `tls/`.
pub(crate) fn pem(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/image/tls")
        .join(name)
}

/// Speaks TLS before a registry, to those whose certificate the authority
/// signed. Its address.
pub(crate) async fn mutual_tls(registry: &str) -> String {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(pem("ca.pem")).unwrap();
    roots.add(authority).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let certificate = CertificateDer::from_pem_file(pem("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(pem("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let registry = registry.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, registry) = (acceptor.clone(), registry.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut behind = TcpStream::connect(registry).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    format!("localhost:{port}")
}

/// A way to a registry on which every connection breaks after so many bytes.
pub(crate) struct Cutter {
    pub(crate) host: String,
    carried: Arc<AtomicUsize>,
    cuts: Arc<AtomicUsize>,
}

impl Cutter {
    pub(crate) async fn before(registry: &str, after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cutter = Self {
            host: listener.local_addr().unwrap().to_string(),
            carried: Arc::default(),
            cuts: Arc::default(),
        };
        let (carried, cuts) = (Arc::clone(&cutter.carried), Arc::clone(&cutter.cuts));
        let registry = registry.to_owned();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (carried, cuts) = (Arc::clone(&carried), Arc::clone(&cuts));
                let Ok(server) = TcpStream::connect(&registry).await else {
                    continue;
                };
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = tokio::spawn(async move {
                        let _ = copy(&mut from_client, &mut to_server).await;
                    });
                    let mut buffer = vec![0; 16 << 10];
                    let mut left = after;
                    while left > 0 {
                        let room = left.min(buffer.len());
                        match from_server.read(&mut buffer[..room]).await {
                            Ok(0) | Err(_) => break,
                            Ok(count) => {
                                left -= count;
                                carried.fetch_add(count, Ordering::SeqCst);
                                if to_client.write_all(&buffer[..count]).await.is_err() {
                                    break;
                                }
                            }
                        }
                    }
                    if left == 0 {
                        cuts.fetch_add(1, Ordering::SeqCst);
                    }
                    up.abort();
                });
            }
        });
        cutter
    }

    /// Bytes that came from the registry.
    pub(crate) fn carried(&self) -> usize {
        self.carried.load(Ordering::SeqCst)
    }

    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}
