#![allow(clippy::unwrap_used)]

use tempfile::TempDir;

use super::*;

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = TempDir::new().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

fn said(directory: &TempDir, names: &[&str]) -> Result<Said, RegistryError> {
    look_up(&["/nowhere".into(), directory.path().to_owned()], names)
}

#[test]
fn containerd_s_hosts_are_read_in_the_order_of_their_lines() {
    let directory = directory(&[(
        "docker.io/hosts.toml",
        r#"
server = "https://docker.io"
ca = "server.pem"

[host."https://z.example"]
  capabilities = ["pull", "resolve"]
  ca = ["a.pem", "/b.pem"]
  client = [["c.pem", "k.pem"], "both.pem"]

[host."http://a.example:5000/proxy"]
  capabilities = ["pull"]
  [host."http://a.example:5000/proxy".header]
    x-one = "1"
    x-many = ["2", "3"]

[host."m.example/own"]
  skip_verify = true
  override_path = true
"#,
    )]);
    let said = said(&directory, &["docker.io", "registry-1.docker.io"]).unwrap();
    let hosts: Vec<&str> = said.hosts.iter().map(|site| site.host.as_str()).collect();
    assert_eq!(hosts, ["z.example", "a.example:5000", "m.example"]);
    let at = directory.path().join("docker.io");
    let paths = |files: &[PemFile]| files.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
    let [z, a, m] = &said.hosts[..] else {
        panic!("not three hosts");
    };
    assert_eq!(
        paths(&z.tls.authorities),
        [at.join("a.pem"), "/b.pem".into()]
    );
    let (certificate, key) = &z.tls.identities[0];
    assert_eq!(certificate.path, at.join("c.pem"));
    assert_eq!(key.path, at.join("k.pem"));
    assert_eq!(z.tls.identities[1].0.path, z.tls.identities[1].1.path);
    assert!(z.abilities.resolve && !z.abilities.push && !z.tls.anybody);
    assert_eq!(z.namespace.as_deref(), Some("docker.io"));
    assert_eq!((a.scheme, a.base.as_str()), (Some("http"), "/proxy/v2"));
    assert!(a.abilities.pull && !a.abilities.resolve);
    assert_eq!(a.headers.len(), 3);
    assert_eq!((m.scheme, m.base.as_str()), (Some("https"), "/own"));
    assert!(m.tls.anybody && m.abilities == Abilities::ALL);
    let server = said.server.unwrap();
    assert_eq!(server.host, "registry-1.docker.io");
    assert_eq!(server.namespace, None);
    assert_eq!(paths(&server.tls.authorities), [at.join("server.pem")]);
}

#[test]
fn docker_s_certificates_are_found_by_their_names() {
    let directory = directory(&[
        ("r.example:5000/ca.crt", ""),
        ("r.example:5000/more.crt", ""),
        ("r.example:5000/client.cert", ""),
        ("r.example:5000/client.key", ""),
        ("r.example:5000/README", ""),
        ("half.example/client.cert", ""),
        ("alone.example/client.key", ""),
        ("other.example_5000_/ca.crt", ""),
    ]);
    let found = said(&directory, &["r.example:5000"]).unwrap();
    assert_eq!(found.tls.authorities.len(), 2);
    assert_eq!(found.tls.identities.len(), 1);
    assert!(found.hosts.is_empty() && found.server.is_none());
    let found = said(&directory, &["other.example:5000"]).unwrap();
    assert_eq!(found.tls.authorities.len(), 1);
    for half in ["half.example", "alone.example"] {
        let error = said(&directory, &[half]).unwrap_err();
        assert!(
            matches!(&error, RegistryError::HostsFile { reason, .. } if reason.contains("without")),
            "{error}"
        );
    }
    assert_eq!(
        said(&directory, &["unknown.example"]).unwrap(),
        Said::default()
    );
}

#[test]
fn a_default_is_for_hosts_without_a_directory_of_their_own() {
    let directory = directory(&[
        ("_default/hosts.toml", "[host.\"https://m.example\"]"),
        ("own.example/hosts.toml", ""),
    ]);
    let found = said(&directory, &["any.example"]).unwrap();
    assert_eq!(found.hosts[0].namespace.as_deref(), Some("any.example"));
    let found = said(&directory, &["own.example"]).unwrap();
    assert_eq!(found, Said::default());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    for text in [
        "host = 1",
        "[host.\"ftp://x\"]",
        "[host.\"https://x\"]\ncapabilities = [\"fly\"]",
        "[host.\"https://x\".header]\n\"a b\" = \"c\"",
        "server = \"https://\"",
        "not toml",
    ] {
        let directory = directory(&[("x/hosts.toml", text)]);
        let error = said(&directory, &["x"]).unwrap_err().to_string();
        assert!(error.contains("x/hosts.toml"), "{text}: {error}");
    }
}

#[test]
fn an_error_in_a_hosts_file_shows_no_secret() {
    for text in [
        "[host.\"https://x\".header]\nAuthorization = \"Basic hush\u{1}\"",
        "[host.\"https://x\".header]\nAuthorization = \"Basic hush\" odd",
    ] {
        let directory = directory(&[("x/hosts.toml", text)]);
        let error = said(&directory, &["x"]).unwrap_err().to_string();
        assert!(!error.contains("hush"), "{error}");
    }
}
