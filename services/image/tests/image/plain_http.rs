//! Plain HTTP is for hosts that are declared insecure, in that role and at that time; secrets need more.
//!
//! `0.0.0.0` leads to this machine and is not a loopback address: a host that is
//! not insecure by itself.

use std::path::{Path, PathBuf};

use gantry_image::config::Config;
use gantry_image::error::ImageError;
use gantry_image::pull::{PullOptions, Pulled};
use gantry_image::registry_client::{Credentials, HostConfig, OneOrMany, RegistryError};
use gantry_image::search::SearchOptions;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::fixture::{Fixture, TestLayer, config, publish};
use crate::proxy::{mutual_tls, pem};
use crate::registry::Registry;

fn layer() -> TestLayer {
    TestLayer::gzip(Archive::new().file("f", b"x").finish())
}

fn bob() -> Credentials {
    Credentials::Password {
        username: "bob".into(),
        password: "secret".into(),
    }
}

async fn pull_as_bob(fixture: &Fixture, reference: &str) -> Result<Pulled, ImageError> {
    let options = PullOptions {
        credentials: Some(bob()),
        ..PullOptions::default()
    };
    fixture
        .store
        .pull(reference, &options, fixture.watcher())
        .await
}

/// An image that no other test registry has a layer of, under a name.
async fn local_image(fixture: &Fixture, name: &str) {
    let source = Registry::start().await;
    let layer = TestLayer::gzip(Archive::new().file("new", b"y").finish());
    publish(&source, "new", &[layer]);
    let reference = format!("{}/x:new", source.host);
    fixture.pull(&reference).await.unwrap();
    fixture.store.tag(&reference, name).unwrap();
}

fn insecure() -> HostConfig {
    HostConfig {
        insecure: Some(true),
        ..HostConfig::default()
    }
}

/// A registry that speaks plain HTTP, and its name as one on another machine.
async fn elsewhere() -> (Registry, String) {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer()]);
    let host = format!("0.0.0.0:{}", registry.port());
    (registry, host)
}

/// A store that reads `hosts.toml` files below a directory.
fn with_directory(directory: &Path) -> Fixture {
    Fixture::with(Config {
        certs_dirs: vec![directory.to_owned()],
        ..config()
    })
}

fn write_hosts(directory: &Path, host: &str, text: &str) -> PathBuf {
    let own = directory.join(host);
    std::fs::create_dir_all(&own).unwrap();
    let file = own.join("hosts.toml");
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_a_plain_mirror_is_not_spoken_to_in_plain_as_itself() {
    let (registry, host) = elsewhere().await;
    let directory = tempfile::tempdir().unwrap();
    write_hosts(
        directory.path(),
        "registry.invalid",
        &format!("[host.\"http://{host}\"]\n"),
    );
    let fixture = with_directory(directory.path());
    fixture.pull("registry.invalid/x:v1").await.unwrap();
    assert!(!registry.take_requests().is_empty());

    registry.want_login("bob", "secret");
    let reference = format!("{host}/x:v1");
    let error = pull_as_bob(&fixture, &reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Registry(_)), "{error:?}");
    assert_eq!(registry.take_requests(), Vec::<String>::new());
    // And the mirror goes on as it was.
    registry.take_authorizations();
    fixture.pull("registry.invalid/y:v1").await.unwrap_err();
    assert_eq!(registry.take_authorizations(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_file_that_is_withdrawn_or_changed_counts_at_once() {
    let (registry, host) = elsewhere().await;
    let directory = tempfile::tempdir().unwrap();
    let reference = format!("{host}/x:v1");
    let plain = format!("server = \"http://{host}\"\n");
    let file = write_hosts(directory.path(), &host, &plain);
    registry.want_login("bob", "secret");
    registry.realm(&format!("http://{host}/token"));
    let fixture = with_directory(directory.path());
    // The file declares the registry itself, which gets its credentials.
    pull_as_bob(&fixture, &reference).await.unwrap();
    assert!(!registry.take_authorizations().is_empty());
    registry.take_requests();

    std::fs::write(&file, format!("server = \"https://{host}\"\n")).unwrap();
    pull_as_bob(&fixture, &reference).await.unwrap_err();
    std::fs::remove_file(&file).unwrap();
    pull_as_bob(&fixture, &reference).await.unwrap_err();
    std::fs::remove_dir(file.parent().unwrap()).unwrap();
    pull_as_bob(&fixture, &reference).await.unwrap_err();
    assert_eq!(registry.take_requests(), Vec::<String>::new());

    write_hosts(directory.path(), &host, &plain);
    pull_as_bob(&fixture, &reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_mirror_gets_no_credentials_unless_it_is_declared_insecure_itself() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer()]);
    let (mirror, host) = elsewhere().await;
    mirror.want_login("bob", "secret");
    mirror.realm(&format!("http://{host}/token"));
    let directory = tempfile::tempdir().unwrap();
    let docker = directory.path().join("config.json");
    let auth = r#"{"auths":{"HOST":{"auth":"Ym9iOnNlY3JldA=="}}}"#;
    std::fs::write(&docker, auth.replace("HOST", &host)).unwrap();
    let headers = [("x-secret".to_owned(), "1".to_owned())];
    let mirrored = HostConfig {
        mirrors: vec![format!("http://{host}").as_str().into()],
        ..HostConfig::default()
    };
    let named = HostConfig {
        headers: headers.into(),
        ..HostConfig::default()
    };
    let mut settings = Config {
        docker_config: docker,
        registry: [(registry.host.clone(), mirrored), (host.clone(), named)].into(),
        ..config()
    };
    let reference = format!("{}/x:v1", registry.host);
    let fixture = Fixture::with(settings.clone());
    fixture.pull(&reference).await.unwrap();
    assert!(!mirror.take_requests().is_empty());
    assert_eq!(mirror.take_authorizations(), Vec::<String>::new());
    assert!(registry.asked_for(&layer().digest()));

    registry.take_requests();
    settings.registry.insert(host, insecure());
    let fixture = Fixture::with(settings);
    fixture.pull(&reference).await.unwrap();
    assert!(!mirror.take_authorizations().is_empty());
    assert!(registry.take_requests().is_empty());
}

/// A registry behind TLS, its address, and what a store needs to trust it.
async fn secure() -> (Registry, String, HostConfig) {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer()]);
    let host = mutual_tls(&registry.host).await;
    let table = HostConfig {
        ca: OneOrMany(vec![pem("ca.pem")]),
        client_cert: Some(pem("client.pem")),
        client_key: Some(pem("client.key")),
        ..HostConfig::default()
    };
    (registry, host, table)
}

fn is_downgrade(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Registry(RegistryError::Downgrade { .. } | RegistryError::InClear { .. })
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_behind_tls_cannot_send_the_password_to_a_plain_token_service() {
    let (registry, host, table) = secure().await;
    registry.want_login("bob", "secret");
    let mut settings = Config {
        registry: [(host.clone(), table)].into(),
        ..config()
    };
    let reference = format!("{host}/x:v1");
    let fixture = Fixture::with(settings.clone());
    let error = pull_as_bob(&fixture, &reference).await.unwrap_err();
    assert!(is_downgrade(&error), "{error:?}");
    let error = fixture.store.login(&host, bob()).await.unwrap_err();
    assert!(is_downgrade(&error), "{error:?}");
    assert_eq!(registry.take_authorizations(), Vec::<String>::new());
    // Unless a person says that this very host may be spoken to so.
    settings.registry.insert(registry.host.clone(), insecure());
    let fixture = Fixture::with(settings);
    pull_as_bob(&fixture, &reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_uploads_and_further_pages_do_not_lead_out_of_https() {
    let (registry, host, table) = secure().await;
    let settings = Config {
        registry: [(host.clone(), table)].into(),
        ..config()
    };
    let reference = format!("{host}/x:v1");
    let plain = format!("http://localhost:{}", registry.port());
    registry.redirect_blobs();
    let fixture = Fixture::with(settings.clone());
    let error = fixture.pull(&reference).await.unwrap_err();
    assert!(is_downgrade(&error), "{error:?}");
    let mut declared = settings.clone();
    let target = format!("localhost:{}", registry.port());
    declared.registry.insert(target, insecure());
    let fixture = Fixture::with(declared);
    fixture.pull(&reference).await.unwrap();

    registry.lead_to(&plain);
    registry.page(1);
    publish(&registry, "v2", &[layer()]);
    let cancel = CancellationToken::new();
    let new = format!("{host}/new:v1");
    let fixture = Fixture::with(settings);
    local_image(&fixture, &new).await;
    let pushed = fixture
        .store
        .push(&new, None, &cancel, fixture.watcher())
        .await;
    let error = pushed.unwrap_err();
    assert!(is_downgrade(&error), "{error:?}");
    let requests = registry.take_requests();
    assert!(
        !requests.iter().any(|line| line.starts_with("PUT")),
        "{requests:?}"
    );
    let options = PullOptions::default();
    let pulled = fixture
        .store
        .pull_all(&format!("{host}/x"), &options, fixture.watcher())
        .await;
    let error = pulled.unwrap_err();
    assert!(is_downgrade(&error), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_s_own_registry_is_reached_on_its_socket_and_without_credentials() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer()]);
    registry.list_repositories(&["x", "y"]);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("registry.sock");
    write_hosts(
        directory.path(),
        "_default",
        "[host.\"http://127.0.0.1:1\"]\n",
    );
    let settings = Config {
        own_registry: Some(socket.clone()),
        certs_dirs: vec![directory.path().to_owned()],
        ..config()
    };
    let fixture = Fixture::with(settings.clone());
    let error = fixture.pull("gantry.localhost/x:v1").await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Registry(RegistryError::NotRunning { .. })
        ) && error.to_string().contains("gantry-registry"),
        "{error:?}"
    );

    registry.listen_on(&socket);
    for spelling in ["gantry.localhost/x:v1", "GANTRY.localhost/x:v1"] {
        pull_as_bob(&fixture, spelling).await.unwrap();
    }
    let cancel = CancellationToken::new();
    local_image(&fixture, "gantry.localhost/new:v1").await;
    fixture
        .store
        .push(
            "gantry.localhost/new:v1",
            Some(bob()),
            &cancel,
            fixture.watcher(),
        )
        .await
        .unwrap();
    assert!(registry.manifest("v1").is_some());
    let options = SearchOptions {
        term: "gantry.localhost/y".into(),
        credentials: Some(bob()),
        ..SearchOptions::default()
    };
    let found = fixture.store.search(&options).await.unwrap();
    assert_eq!(found[0].name, "gantry.localhost/y");
    assert_eq!(registry.take_authorizations(), Vec::<String>::new());
    fixture
        .store
        .login("gantry.localhost", bob())
        .await
        .unwrap_err();

    // Another registry does not lead there.
    let other = Registry::start().await;
    publish(&other, "v1", &[layer()]);
    publish(&other, "v2", &[layer()]);
    other.lead_to("http://gantry.localhost");
    other.page(1);
    registry.take_requests();
    let pulled = fixture
        .store
        .pull_all(
            &format!("{}/x", other.host),
            &PullOptions::default(),
            fixture.watcher(),
        )
        .await;
    pulled.unwrap_err();
    assert_eq!(registry.take_requests(), Vec::<String>::new());

    let table = [("gantry.localhost".to_owned(), HostConfig::default())];
    let refused = gantry_image::ImageStore::open(
        directory.path(),
        Config {
            registry: table.into(),
            ..settings
        },
    );
    assert!(refused.is_err());
}
