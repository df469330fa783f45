#![allow(clippy::unwrap_used)]

use super::*;

fn hosts(text: &str) -> Hosts {
    #[derive(Deserialize)]
    struct Image {
        #[serde(default)]
        mirrors: Vec<Mirror>,
        #[serde(default)]
        registry: HashMap<String, HostConfig>,
    }
    let image: Image = toml::from_str(text).unwrap();
    Hosts {
        tables: image.registry,
        mirrors: image.mirrors,
        ..Hosts::default()
    }
}

fn layout(hosts: &Hosts, reference: &str) -> Layout {
    hosts.layout(&reference.parse().unwrap()).unwrap()
}

#[test]
fn only_this_machine_is_insecure_by_itself() {
    let mut hosts = Hosts::default();
    let is_insecure = |hosts: &Hosts, host: &str| hosts.site(host).unwrap().tls.anybody;
    for local in [
        "localhost",
        "localhost:5000",
        "127.0.0.1:80",
        "127.8.9.1",
        "[::1]:5000",
    ] {
        assert!(is_insecure(&hosts, local), "{local}");
    }
    for remote in [
        "registry.example",
        "10.0.0.1:5000",
        "localhost.example",
        "1270.0.0.1",
    ] {
        assert!(!is_insecure(&hosts, remote), "{remote}");
    }
    let table = HostConfig {
        insecure: Some(true),
        ..HostConfig::default()
    };
    hosts.tables.insert("10.0.0.1:5000".into(), table);
    assert!(is_insecure(&hosts, "10.0.0.1:5000"));
    let table = HostConfig {
        ca: OneOrMany(vec!["/ca.pem".into()]),
        ..HostConfig::default()
    };
    hosts.tables.insert("localhost:5000".into(), table);
    assert!(!is_insecure(&hosts, "localhost:5000"));
}

#[test]
fn mirrors_are_addresses_or_tables() {
    let hosts = hosts(
        r#"
mirrors = ["http://hub.mirror:5000"]
[registry."r.example"]
mirrors = ["m.example", { url = "https://cache.example/all", pull_through = true, resolve = false }]
ca = ["/a.pem", "/b.pem"]
[registry."m.example"]
ca = "/m.pem"
"#,
    );
    hosts.check().unwrap();
    let found = layout(&hosts, "r.example/a");
    let [plain, cache] = &found.mirrors[..] else {
        panic!("not two mirrors");
    };
    assert_eq!(plain.host, "m.example");
    assert_eq!(plain.namespace, None);
    assert_eq!(plain.tls.authorities.len(), 1);
    assert!(plain.abilities.resolve && !plain.abilities.push);
    assert_eq!(cache.base, "/all/v2");
    assert_eq!(cache.namespace.as_deref(), Some("r.example"));
    assert!(!cache.abilities.resolve);
    assert_eq!(found.registry.tls.authorities.len(), 2);
    let found = layout(&hosts, "debian");
    assert_eq!(found.mirrors[0].host, "hub.mirror:5000");
    assert_eq!(found.mirrors[0].scheme, Some("http"));
    assert_eq!(found.registry.host, DOCKER_HUB_API);
    assert!(layout(&hosts, "other.example/a").mirrors.is_empty());
}

#[test]
fn the_own_table_goes_over_the_directories() {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("r.example");
    std::fs::create_dir(&own).unwrap();
    let text =
        "server = \"https://r.example\"\nca = \"theirs.pem\"\n[host.\"https://theirs.example\"]";
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    let mut hosts = hosts("[registry.\"r.example\"]\nclient_cert = \"/c\"\nclient_key = \"/k\"");
    hosts.certs_dirs = vec![directory.path().to_owned()];
    let found = layout(&hosts, "r.example/a");
    assert_eq!(found.mirrors[0].host, "theirs.example");
    assert_eq!(
        found.registry.tls.authorities[0].path,
        own.join("theirs.pem")
    );
    assert_eq!(found.registry.tls.identities.len(), 1);
    let table = hosts.tables.get_mut("r.example").unwrap();
    table.mirrors = vec!["ours.example".into()];
    table.ca = OneOrMany(vec!["/ours.pem".into()]);
    let found = layout(&hosts, "r.example/a");
    assert_eq!(found.mirrors[0].host, "ours.example");
    assert_eq!(
        found.registry.tls.authorities[0].path,
        std::path::Path::new("/ours.pem")
    );
}

#[test]
fn tables_that_cannot_be_used_are_refused_at_once() {
    for text in [
        "[registry.x]\nclient_cert = \"/c\"",
        "[registry.x]\nmirrors = [\"ftp://m\"]",
        "mirrors = [\"https://\"]",
        "[registry.x.headers]\n\"a b\" = \"c\"",
    ] {
        let error = hosts(text).check().unwrap_err();
        assert!(
            matches!(error, RegistryError::Configuration { .. }),
            "{text}: {error}"
        );
    }
    let unknown = "mirrors = [{ url = \"m\", pull_trough = true }]";
    let error = toml::from_str::<HostConfig>(unknown).unwrap_err();
    assert!(error.to_string().contains("pull_trough"), "{error}");
}

#[tokio::test]
async fn the_table_s_name_and_password_go_over_docker_s_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, r#"{"auths":{"r.example":{"auth":"YTpi"}}}"#).unwrap();
    let mut hosts = Hosts {
        docker_config: Some(path),
        ..Hosts::default()
    };
    let found = hosts.credentials("r.example").await.unwrap().unwrap();
    assert_eq!(found.username(), "a");
    let table = HostConfig {
        username: Some("c".into()),
        password: Some("d".into()),
        ..HostConfig::default()
    };
    hosts.tables.insert("r.example".into(), table);
    let found = hosts.credentials("r.example").await.unwrap().unwrap();
    assert_eq!(found.username(), "c");
    assert_eq!(hosts.credentials("other.example").await.unwrap(), None);
}

#[test]
fn plain_http_and_secrets_over_it_follow_from_the_role_alone() {
    let directory = tempfile::tempdir().unwrap();
    for (host, text) in [
        (
            "r.example",
            "[host.\"http://m.example\"]\n[host.\"http://r.example\"]\n",
        ),
        ("plain.example", "server = \"http://plain.example\"\n"),
        (
            "no.example",
            "server = \"http://no.example\"\n[host.\"http://no.example\"]\n",
        ),
        ("skips.example", "skip_verify = true\n"),
    ] {
        let own = directory.path().join(host);
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("hosts.toml"), text).unwrap();
    }
    let mut hosts = hosts(
        r#"
[registry."own.example"]
mirrors = ["http://m.example", "http://yes.example", "http://127.0.0.1:1"]
[registry."m.example"]
headers = { X-Secret = "1" }
[registry."yes.example"]
insecure = true
[registry."no.example"]
insecure = false
"#,
    );
    hosts.certs_dirs = vec![directory.path().to_owned()];
    let is = |site: &Site| (site.may_be_plain(), site.secrets_in_clear);

    let found = layout(&hosts, "own.example/a");
    let mirrors: Vec<_> = found.mirrors.iter().map(is).collect();
    assert_eq!(mirrors, [(true, false), (true, true), (true, true)]);
    assert!(found.mirrors[0].headers.is_empty());
    assert_eq!(is(&found.registry), (false, false));

    let found = layout(&hosts, "r.example/a");
    let mirrors: Vec<_> = found.mirrors.iter().map(is).collect();
    assert_eq!(mirrors, [(true, false), (true, true)]);
    assert_eq!(is(&found.registry), (false, false));
    assert_eq!(is(&hosts.site("plain.example").unwrap()), (true, true));
    assert_eq!(is(&hosts.site("m.example").unwrap()), (false, false));
    assert_eq!(hosts.site("m.example").unwrap().headers.len(), 1);
    assert_eq!(is(&hosts.site("skips.example").unwrap()), (false, false));
    // The own table takes back what a directory declares.
    let found = layout(&hosts, "no.example/a");
    assert_eq!(is(&found.registry), (false, false));
    assert_eq!(is(&found.mirrors[0]), (false, false));
}

#[test]
fn what_is_shown_of_a_table_has_no_secret_in_it() {
    let hosts = hosts(
        "[registry.x]\nusername = \"ann\"\npassword = \"hush\"\nheaders = { X-A = \"hush\" }",
    );
    let shown = format!("{hosts:?}");
    assert!(shown.contains("ann") && !shown.contains("hush"), "{shown}");
}
