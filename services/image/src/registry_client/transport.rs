//! Connections: HTTP and HTTPS, each host with its own idea of whom to trust.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::error::RegistryError;
use super::hosts::HostConfig;

/// What requests carry.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type HttpClient = Client<HttpsConnector<HttpConnector>, Body>;

/// How long a host may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept: a pull follows the one before soon or not at all.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Whom to trust.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Trust {
    /// The system's authorities and those of the host's table.
    Authorities,
    /// Anybody: the host was declared insecure.
    Anybody,
}

/// Makes a client for a host.
pub(super) fn client(
    host: &str,
    table: &HostConfig,
    trust: Trust,
) -> Result<HttpClient, RegistryError> {
    let tls = match trust {
        Trust::Authorities => trusting(host, table.ca.as_deref())?,
        Trust::Anybody => trusting_anybody()?,
    };
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    // HTTP/1.1 alone: each layer gets a connection of its own, and none waits for another's window.
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(256 << 10)
        .build(connector))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn trusting(host: &str, ca: Option<&Path>) -> Result<ClientConfig, RegistryError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(RegistryError::Tls)?;
    let mut roots = RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // One odd certificate among the system's does not matter. With none at
        // all every certificate is refused, and the error says so.
        let _ = roots.add(certificate);
    }
    if let Some(path) = ca {
        let failed = |source| RegistryError::Certificate {
            host: host.to_owned(),
            path: path.display().to_string(),
            source,
        };
        let other = |e| failed(io::Error::other(e));
        for certificate in CertificateDer::pem_file_iter(path).map_err(other)? {
            let certificate = certificate.map_err(other)?;
            roots
                .add(certificate)
                .map_err(|e| failed(io::Error::other(e)))?;
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn trusting_anybody() -> Result<ClientConfig, RegistryError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(RegistryError::Tls)?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
        .with_no_client_auth())
}

/// Takes every certificate, for registries that were declared insecure.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
