//! The file and the helpers, for real.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_credentials::{Credentials, CredentialsError, DockerConfig, Helper, Kept, Server};
use serde_json::Value;
use tempfile::TempDir;

struct Home {
    directory: TempDir,
}

impl Home {
    fn new(config: &str) -> Self {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("config.json")
    }

    fn config(&self) -> DockerConfig {
        let config = DockerConfig::read(&self.path()).unwrap();
        config.searching(Some(self.search()))
    }

    /// The directory of the helpers, and the shell's tools.
    fn search(&self) -> OsString {
        format!("{}:/usr/bin:/bin", self.directory.path().display()).into()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path()).unwrap()).unwrap()
    }

    fn helper(&self, name: &str, script: &str) -> Helper {
        let path = self
            .directory
            .path()
            .join(format!("docker-credential-{name}"));
        // Written by another process: a test that forks meanwhile would hold it
        // open for writing, and nobody could run it.
        let plain = path.with_extension("sh");
        std::fs::write(&plain, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mut install = std::process::Command::new("install");
        let installed = install.args(["-m", "755"]).arg(&plain).arg(&path).status();
        assert!(installed.unwrap().success());
        std::fs::remove_file(plain).unwrap();
        Helper::named(name).unwrap().searching(Some(self.search()))
    }

    /// A helper that keeps what it gets in files beside itself.
    fn keychain(&self, name: &str) -> Helper {
        let at = self.directory.path().join(format!("keychain-{name}"));
        std::fs::create_dir(&at).unwrap();
        let at = at.display();
        self.helper(
            name,
            &format!(
                r#"cd {at} || exit 2
input=$(cat)
file=$(printf %s "$input" | tr '/:' '__')
case $1 in
get) cat "$file" 2>/dev/null || {{ echo "credentials not found in native keychain"; exit 1; }} ;;
store) key=$(printf %s "$input" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/')
  printf %s "$key" > .key; printf %s "$input" > "$(printf %s "$key" | tr '/:' '__')" ;;
erase) rm "$file" 2>/dev/null || {{ echo "credentials not found in native keychain"; exit 1; }} ;;
list) [ -e .key ] && printf '{{"%s":"x"}}' "$(cat .key)" || echo '{{}}' ;;
esac"#
            ),
        )
    }
}

fn password(username: &str, password: &str) -> Credentials {
    Credentials::Password {
        username: username.into(),
        password: password.into(),
    }
}

#[tokio::test]
async fn credentials_are_found_under_every_spelling() {
    // "bob:se:cret" and an identity token of "ann".
    let home = Home::new(
        r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"Ym9iOnNlOmNyZXQ="},
            "http://r.example:5000/v2/":{"auth":"YW5uOg==","identitytoken":"t"},
            "plain.example":{"username":"p","password":"q"},
            "empty.example":{}}}"#,
    );
    let config = home.config();
    for hub in ["", "docker.io", "registry-1.docker.io"] {
        let found = config.find(&Server::new(hub)).await.unwrap();
        assert_eq!(found, Some(password("bob", "se:cret")));
    }
    let found = config.find(&Server::new("r.example:5000")).await.unwrap();
    let identity = Credentials::Identity {
        username: "ann".into(),
        token: "t".into(),
    };
    assert_eq!(found, Some(identity));
    let found = config.find(&Server::new("plain.example")).await.unwrap();
    assert_eq!(found, Some(password("p", "q")));
    for none in ["empty.example", "other.example", "r.example"] {
        assert_eq!(config.find(&Server::new(none)).await.unwrap(), None);
    }
    let nowhere = DockerConfig::read(Path::new("/nowhere/at/all/config.json")).unwrap();
    assert_eq!(nowhere.find(&Server::new("")).await.unwrap(), None);
}

#[tokio::test]
async fn a_file_keeps_what_is_not_ours_its_mode_and_its_link() {
    let home = Home::new(
        r#"{"HttpHeaders":{"X":"y"},"auths":{"other":{"auth":"YTpi"},"https://r.example/v1/":{"auth":"eDp5"}}}"#,
    );
    let link = home.directory.path().join("link.json");
    symlink(home.path(), &link).unwrap();
    let mut config = DockerConfig::read(&link).unwrap();
    let server = Server::new("r.example");
    let kept = config.keep(&server, &password("bob", "secret")).await;
    assert_eq!(kept.unwrap(), Kept::File);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let json = home.json();
    assert_eq!(json["HttpHeaders"]["X"], "y");
    assert_eq!(json["auths"]["other"]["auth"], "YTpi");
    assert_eq!(json["auths"]["r.example"]["auth"], "Ym9iOnNlY3JldA==");
    assert_eq!(json["auths"].as_object().unwrap().len(), 2, "{json}");
    let mode = home.path().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let files = std::fs::read_dir(home.directory.path()).unwrap().count();
    assert_eq!(files, 2, "something is left beside the file");

    let token = Credentials::Identity {
        username: "bob".into(),
        token: "tok".into(),
    };
    config.keep(&server, &token).await.unwrap();
    assert_eq!(home.config().find(&server).await.unwrap(), Some(token));
    assert!(config.forget(&server).await.unwrap());
    assert!(!config.forget(&server).await.unwrap());
    let json = home.json();
    assert_eq!(json["auths"].as_object().unwrap().len(), 1, "{json}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_made_for_its_owner_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("new/config.json");
    let mut config = DockerConfig::read(&path).unwrap();
    assert!(!config.forget(&Server::new("")).await.unwrap());
    config
        .keep(&Server::new(""), &password("a", "b"))
        .await
        .unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["auths"]["https://index.docker.io/v1/"]["auth"], "YTpi");
}

#[tokio::test]
async fn a_file_that_is_damaged_is_left_alone() {
    let home = Home::new("{\"auths\":");
    let error = DockerConfig::read(&home.path()).unwrap_err();
    assert!(error.to_string().contains("not usable"), "{error}");
    let home = Home::new(r#"{"auths":{"a":{"auth":"!"},"b":{"auth":"YQ=="}}}"#);
    for server in ["a", "b"] {
        let error = home.config().find(&Server::new(server)).await.unwrap_err();
        assert!(
            matches!(error, CredentialsError::Malformed { .. }),
            "{error}"
        );
    }
    assert!(matches!(
        DockerConfig::read(Path::new("/")),
        Err(CredentialsError::File { .. })
    ),);
}

#[tokio::test]
async fn helpers_keep_find_and_forget() {
    let home = Home::new(r#"{"credsStore":"all","credHelpers":{"own.example":"own"}}"#);
    let (all, own) = (home.keychain("all"), home.keychain("own"));
    let mut config = home.config();
    let (hub, special) = (Server::new(""), Server::new("own.example"));
    assert_eq!(config.find(&hub).await.unwrap(), None);
    let kept = config.keep(&hub, &password("bob", "secret")).await.unwrap();
    assert_eq!(kept, Kept::Helper("docker-credential-all".into()));
    let token = Credentials::Identity {
        username: "bob".into(),
        token: "tok".into(),
    };
    config.keep(&special, &token).await.unwrap();
    let text = std::fs::read_to_string(home.path()).unwrap();
    assert!(
        !text.contains("secret") && !text.contains("tok\""),
        "{text}"
    );
    let found = home.config().find(&hub).await.unwrap();
    assert_eq!(found, Some(password("bob", "secret")));
    let nameless = Credentials::Identity {
        username: String::new(),
        token: "tok".into(),
    };
    let found = home.config().find(&special).await.unwrap();
    assert_eq!(found, Some(nameless));
    assert_eq!(own.get("own.example").await.unwrap(), found);
    assert_eq!(all.get("own.example").await.unwrap(), None);
    assert!(all.list().await.unwrap().contains_key(hub.key()));
    assert!(config.forget(&hub).await.unwrap());
    assert_eq!(home.config().find(&hub).await.unwrap(), None);
    assert!(!config.forget(&hub).await.unwrap());
}

#[tokio::test]
async fn what_a_helper_does_not_know_the_file_may() {
    let home = Home::new(r#"{"credsStore":"all","auths":{"r.example":{"auth":"YTpi"}}}"#);
    home.keychain("all");
    let found = home.config().find(&Server::new("r.example")).await.unwrap();
    assert_eq!(found, Some(password("a", "b")));
}

#[tokio::test]
async fn helpers_that_fail_say_so_and_none_is_waited_for_for_ever() {
    let home = Home::new(r#"{"credsStore":"absent","credHelpers":{"evil":"../x"}}"#);
    let error = home.config().find(&Server::new("")).await.unwrap_err();
    assert!(
        matches!(error, CredentialsError::HelperMissing { .. }),
        "{error}"
    );
    let error = home.config().find(&Server::new("evil")).await.unwrap_err();
    assert!(
        matches!(error, CredentialsError::HelperName { .. }),
        "{error}"
    );
    let locked = home.helper("locked", "echo the keychain is locked >&2; exit 1");
    let error = locked.get("x").await.unwrap_err();
    assert!(error.to_string().ends_with("the keychain is locked"));
    let chatty = home.helper("chatty", "echo secret-without-json");
    let error = chatty.get("x").await.unwrap_err();
    assert!(!error.to_string().contains("secret-without"), "{error}");
    let deaf = home.helper("deaf", "exec sleep 600");
    let began = Instant::now();
    let limit = Duration::from_millis(200);
    let error = deaf.within(limit).get("x").await.unwrap_err();
    assert!(
        matches!(error, CredentialsError::HelperTimeout { .. }),
        "{error}"
    );
    assert!(began.elapsed() < Duration::from_secs(30));
    // One that never reads its input and writes more than anybody wants.
    let loud = home.helper("loud", "head -c 3000000 /dev/zero");
    let error = loud.get("x").await.unwrap_err();
    assert!(matches!(error, CredentialsError::Helper { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_at_the_same_time_do_not_lose_each_other() {
    let home = Home::new("{}");
    let path = home.path();
    let logins = (0..20).map(|n| {
        let path = path.clone();
        tokio::spawn(async move {
            let mut config = DockerConfig::read(&path).unwrap();
            let server = Server::new(&format!("r{n}.example"));
            config.keep(&server, &password("a", "b")).await.unwrap();
        })
    });
    let logins: Vec<_> = logins.collect();
    for login in logins {
        login.await.unwrap();
    }
    assert_eq!(home.json()["auths"].as_object().unwrap().len(), 20);
}
