//! What is configured about registries: mirrors, credentials, patience, search.

use std::time::{Duration, Instant};

use gantry_image::config::Config;
use gantry_image::error::ImageError;
use gantry_image::list::Filter;
use gantry_image::pull::PullOptions;
use gantry_image::registry_client::{Credentials, HostConfig, Mirror, RegistryError};
use gantry_image::search::SearchOptions;

use crate::archive::Archive;
use crate::fixture::{Fixture, TestLayer, config, publish};
use crate::registry::{Fault, Registry};

fn layer(n: u32) -> TestLayer {
    let content = vec![u8::try_from(n).unwrap(); 100_000];
    TestLayer::gzip(Archive::new().file(format!("f{n}"), content).finish())
}

fn bob() -> Credentials {
    Credentials::Password {
        username: "bob".into(),
        password: "secret".into(),
    }
}

fn mirrored(registry: &Registry, mirrors: Vec<Mirror>) -> Fixture {
    let table = HostConfig {
        mirrors,
        ..HostConfig::default()
    };
    Fixture::with(Config {
        registry: [(registry.host.clone(), table)].into(),
        ..config()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_of_many_registries_is_told_which_one_is_meant() {
    let (registry, cache) = (Registry::start().await, Registry::start().await);
    for each in [&registry, &cache] {
        publish(each, "v1", &[layer(1)]);
    }
    let mirror = Mirror {
        pull_through: true,
        ..format!("http://{}", cache.host).as_str().into()
    };
    let fixture = mirrored(&registry, vec![mirror]);
    let reference = format!("{}/x:v1", registry.host);
    fixture.pull(&reference).await.unwrap();
    let expected = format!("ns={}", registry.host);
    assert!(cache.take_queries().iter().all(|query| *query == expected));
    assert!(registry.take_requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_for_content_only_is_not_asked_what_a_tag_stands_for() {
    let (registry, mirror) = (Registry::start().await, Registry::start().await);
    publish(&mirror, "v1", &[layer(1)]);
    // The mirror's tag is an old one.
    publish(&registry, "v1", &[layer(1), layer(2)]);
    let content = Mirror {
        resolve: false,
        ..mirror.host.as_str().into()
    };
    let fixture = mirrored(&registry, vec![content]);
    let pulled = fixture
        .pull(&format!("{}/x:v1", registry.host))
        .await
        .unwrap();
    assert_eq!(pulled.image.record.layers.len(), 2);
    assert!(mirror.asked_for(&layer(1).digest()));
    assert!(!registry.asked_for(&layer(1).digest()));
    assert!(registry.asked_for(&layer(2).digest()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_dies_in_the_middle_is_replaced_where_it_was() {
    let (registry, mirror) = (Registry::start().await, Registry::start().await);
    let mut content = vec![0; 400_000];
    getrandom(&mut content);
    let big = TestLayer::gzip(Archive::new().file("f", content).finish());
    for each in [&registry, &mirror] {
        publish(each, "v1", std::slice::from_ref(&big));
    }
    // It breaks after a part, and then has nothing any more.
    let fault = Fault {
        cut_after: Some(150_000),
        cuts: 1,
        gone_after_cuts: true,
        ..Fault::default()
    };
    mirror.fault(&big.digest(), fault);
    let fixture = mirrored(&registry, vec![mirror.host.as_str().into()]);
    let pulled = fixture
        .pull(&format!("{}/x:v1", registry.host))
        .await
        .unwrap();
    let served = registry.served();
    assert_eq!(served, big.packed.len() - 150_000);
    let config = pulled.image.config_raw.len();
    assert_eq!(pulled.bytes as usize, big.packed.len() + config);
}

/// Bytes that do not compress.
fn getrandom(bytes: &mut [u8]) {
    use std::io::Read as _;
    let mut source = std::fs::File::open("/dev/urandom").unwrap();
    source.read_exact(bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_gives_wrong_comes_from_the_registry() {
    let (registry, mirror) = (Registry::start().await, Registry::start().await);
    for each in [&registry, &mirror] {
        publish(each, "v1", &[layer(1)]);
    }
    let mut wrong = layer(1).packed;
    wrong[4] ^= 1; // The time in the gzip header: unpacks to the same.
    mirror.alter_blob(&layer(1).digest(), wrong);
    let fixture = mirrored(&registry, vec![mirror.host.as_str().into()]);
    fixture
        .pull(&format!("{}/x:v1", registry.host))
        .await
        .unwrap();
    assert!(mirror.asked_for(&layer(1).digest()));
    assert_eq!(registry.served(), layer(1).packed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_runs_out_in_the_middle_is_renewed_and_is_for_one_repository() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer(1), layer(2), layer(3)]);
    registry.want_login("bob", "secret");
    registry.token_life(2);
    let fixture = Fixture::new();
    let options = PullOptions {
        credentials: Some(bob()),
        ..PullOptions::default()
    };
    for name in ["team/one", "team/two"] {
        let reference = format!("{}/{name}:v1", registry.host);
        fixture
            .store
            .pull(&reference, &options, fixture.watcher())
            .await
            .unwrap();
    }
    let scopes = registry.scopes();
    assert!(scopes.len() >= 3, "{scopes:?}");
    for name in ["team/one", "team/two"] {
        let own = format!("repository:{name}:pull");
        assert!(scopes.contains(&own), "{scopes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_verified_each_time_and_may_give_a_token_to_keep() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer(1)]);
    registry.want_login("bob", "secret");
    let fixture = Fixture::new();
    let login = async |credentials| fixture.store.login(&registry.host, credentials).await;
    let wrong = Credentials::Password {
        username: "bob".into(),
        password: "guess".into(),
    };
    let error = login(wrong).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Denied { .. })),
        "{error}"
    );
    let token = login(bob()).await.unwrap();
    assert_eq!(token.as_deref(), Some("a-long-lived-one"));
    let before = registry.scopes().len();
    login(bob()).await.unwrap();
    assert_eq!(
        registry.scopes().len(),
        before + 1,
        "it was not asked again"
    );
    let identity = Credentials::Identity {
        username: "bob".into(),
        token: token.unwrap(),
    };
    let options = PullOptions {
        credentials: Some(identity),
        ..PullOptions::default()
    };
    let reference = format!("{}/x:v1", registry.host);
    fixture
        .store
        .pull(&reference, &options, fixture.watcher())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_s_file_and_its_helpers_are_asked_where_the_caller_brings_nothing() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer(1)]);
    registry.want_login("bob", "secret");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let fixture = Fixture::with(Config {
        docker_config: path.clone(),
        ..config()
    });
    let reference = format!("{}/x:v1", registry.host);
    fixture.pull(&reference).await.unwrap_err();
    // A helper that is not there is no reason not to try.
    std::fs::write(&path, r#"{"credsStore":"is-not-installed"}"#).unwrap();
    let error = fixture.pull(&reference).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Registry(RegistryError::Denied { .. })),
        "{error}"
    );
    std::fs::write(&path, "{").unwrap();
    let error = fixture.pull(&reference).await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Registry(RegistryError::Credentials { .. })
        ),
        "{error}"
    );
    let auth = r#"{"auths":{"http://HOST/v1/":{"auth":"Ym9iOnNlY3JldA=="}}}"#;
    std::fs::write(&path, auth.replace("HOST", &registry.host)).unwrap();
    fixture.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_patience_is_given_it_within_reason() {
    let registry = Registry::start().await;
    publish(&registry, "v1", &[layer(1)]);
    let refusing = |times| Fault {
        refusals: vec![429; times],
        ..Fault::default()
    };
    registry.fault(&layer(1).digest(), refusing(2));
    registry.retry_after("1");
    let reference = format!("{}/x:v1", registry.host);
    let began = Instant::now();
    let fixture = Fixture::new();
    fixture.pull(&reference).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2));

    // An hour is not waited for, in whatever words it is asked for.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let date = soon.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    for words in ["3600", date.as_str()] {
        registry.fault(&layer(1).digest(), refusing(2));
        registry.retry_after(words);
        let fixture = Fixture::new();
        let began = Instant::now();
        let error = fixture.pull(&reference).await.unwrap_err();
        assert!(error.to_string().contains("seconds"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}

fn filter(key: &str, value: &str) -> Filter {
    Filter {
        key: key.into(),
        value: value.into(),
    }
}

async fn search(
    fixture: &Fixture,
    term: String,
    filters: Vec<Filter>,
) -> Result<Vec<String>, ImageError> {
    let options = SearchOptions {
        term,
        filters,
        limit: 3,
        credentials: None,
    };
    let found = fixture.store.search(&options).await?;
    Ok(found.into_iter().map(|found| found.name).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_searched_and_its_results_are_sifted() {
    let registry = Registry::start().await;
    registry.answer_search(
        r#"{"num_results":4,"results":[
        {"name":"web","description":null,"star_count":7,"is_official":true,"is_automated":false,"is_trusted":false},
        {"name":"team/web","description":"x","star_count":3,"is_official":false,"is_automated":true},
        {"name":"old"},{"name":"beyond"}]}"#,
    );
    let fixture = Fixture::new();
    let host = &registry.host;
    let named = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("{host}/{name}")).collect()
    };
    let look = async |filters| search(&fixture, format!("{host}/a web"), filters).await;
    let all = look(vec![]).await.unwrap();
    assert_eq!(all, named(&["web", "team/web", "old"]));
    assert_eq!(registry.take_queries(), ["q=a%20web&n=3"]);
    let official = look(vec![filter("is-official", "true")]).await.unwrap();
    assert_eq!(official, named(&["web"]));
    let starred = look(vec![
        filter("stars", "1"),
        filter("stars", "3"),
        filter("is-official", "0"),
    ]);
    assert_eq!(starred.await.unwrap(), named(&["team/web"]));
    let automated = look(vec![filter("is-automated", "TRUE")]).await.unwrap();
    assert_eq!(automated, named(&["team/web"]));
    for (key, value) in [("stars", "many"), ("is-official", "maybe"), ("age", "1")] {
        let error = look(vec![filter(key, value)]).await.unwrap_err();
        assert!(matches!(error, ImageError::Filter { .. }), "{error}");
    }
    let error = search(&fixture, format!("{host}/"), vec![]).await;
    assert!(matches!(error, Err(ImageError::Missing { .. })));
    let too_many = SearchOptions {
        term: format!("{host}/x"),
        limit: 101,
        ..SearchOptions::default()
    };
    let error = fixture.store.search(&too_many).await.unwrap_err();
    assert!(matches!(error, ImageError::SearchLimit { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_a_search_has_its_catalogue_looked_through() {
    let registry = Registry::start().await;
    registry.list_repositories(&["a/web", "b", "c/website", "d", "e/web", "f/web"]);
    registry.page(2);
    let fixture = Fixture::new();
    let found = search(&fixture, format!("{}/WEB", registry.host), vec![]);
    let expected = ["a/web", "c/website", "e/web"].map(|name| format!("{}/{name}", registry.host));
    assert_eq!(found.await.unwrap(), expected);
}
