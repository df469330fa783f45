use super::*;
use crate::container::{ContainerId, Image};
use crate::wanted::{Mount, MountKind};

fn record(wanted: Wanted) -> Record {
    let id = ContainerId::try_from("d".repeat(64)).unwrap();
    let mut record = Record::new(id, "one".to_owned(), wanted);
    record.image = Some(Image {
        id: "sha256:1".to_owned(),
        config: gantry_oci::ContainerConfig {
            cmd: Some(vec!["sh".to_owned()]),
            env: vec!["LANG=C".to_owned()],
            working_dir: "/srv".to_owned(),
            ..Default::default()
        },
    });
    record
}

fn built(wanted: Wanted) -> Value {
    let host = Host {
        cpus: 4,
        ..Host::default()
    };
    let spec = build(&record(wanted), &Namespaces::default(), &host).unwrap();
    // Whatever is built is a specification.
    serde_json::from_value::<oci_spec::runtime::Spec>(spec.clone()).unwrap();
    spec
}

/// The specification without the long list of system calls.
fn short(mut spec: Value) -> Value {
    if let Some(profile) = spec["linux"].get_mut("seccomp") {
        profile["syscalls"] = json!("…");
        profile["architectures"] = json!("…");
    }
    spec
}

fn kinds(spec: &Value) -> Vec<&str> {
    spec["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace["type"].as_str().unwrap())
        .collect()
}

#[test]
fn a_container_that_asks_for_nothing_gets_dockers_defaults() {
    let spec = short(built(Wanted::default()));
    let expected: Value = serde_json::from_str(include_str!("default.json")).unwrap();
    assert_eq!(
        spec,
        expected,
        "{}",
        serde_json::to_string_pretty(&spec).unwrap()
    );
}

#[test]
fn a_privileged_container_is_confined_by_nothing() {
    let spec = built(Wanted {
        privileged: true,
        ..Wanted::default()
    });
    let linux = &spec["linux"];
    for key in ["seccomp", "maskedPaths", "readonlyPaths", "sysctl"] {
        assert!(linux.get(key).is_none(), "{key}");
    }
    assert_eq!(
        linux["resources"]["devices"],
        json!([{"allow": true, "access": "rwm"}])
    );
    let bounding = &spec["process"]["capabilities"]["bounding"];
    assert_eq!(bounding.as_array().unwrap().len(), 41);
    let nodes = linux["devices"].as_array().unwrap();
    assert!(nodes.iter().any(|node| node["path"] == "/dev/null"));
    let sys = spec["mounts"].as_array().unwrap().iter();
    let mut sys = sys.filter(|mount| mount["destination"] == "/sys");
    let options = sys.next().unwrap()["options"].as_array().unwrap();
    assert!(options.contains(&json!("rw")));
}

#[test]
fn security_options_are_read() {
    let with = |options: &[&str]| {
        built(Wanted {
            security_opts: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Wanted::default()
        })
    };
    let spec = with(&[
        "no-new-privileges",
        "seccomp=unconfined",
        "systempaths=unconfined",
        "apparmor=unconfined",
    ]);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert!(spec["linux"].get("seccomp").is_none());
    assert!(spec["linux"].get("maskedPaths").is_none());
    assert_eq!(
        with(&["no-new-privileges:false"])["process"]["noNewPrivileges"],
        false
    );
    let unknown = Wanted {
        security_opts: vec!["magic".to_owned()],
        ..Wanted::default()
    };
    assert!(check(&unknown, &Host::default()).is_err());
}

#[test]
fn namespaces_are_new_shared_or_the_hosts() {
    let host = Host::default();
    let record = record(Wanted {
        domainname: "example.org".to_owned(),
        ..Wanted::default()
    });
    let namespaces = Namespaces {
        network: Namespace::Path("/run/netns/x".to_owned()),
        pid: Namespace::Host,
        uts: Namespace::Host,
        ..Namespaces::default()
    };
    let spec = build(&record, &namespaces, &host).unwrap();
    assert_eq!(kinds(&spec), ["mount", "network", "ipc", "cgroup"]);
    assert_eq!(spec["linux"]["namespaces"][1]["path"], "/run/netns/x");
    assert!(spec.get("hostname").is_none());
    let spec = build(&record, &Namespaces::default(), &host).unwrap();
    assert_eq!(
        kinds(&spec),
        ["mount", "network", "uts", "pid", "ipc", "cgroup"]
    );
    assert_eq!(spec["hostname"], "dddddddddddd");
    assert_eq!(spec["domainname"], "example.org");
}

#[test]
fn what_was_asked_for_arrives() {
    let spec = built(Wanted {
        tty: true,
        read_only: true,
        init: true,
        mounts: vec![Mount {
            kind: MountKind::Bind,
            source: "/tmp".to_owned(),
            target: "/data".to_owned(),
            read_only: true,
            ..Mount::default()
        }],
        groups: vec!["42".to_owned()],
        annotations: [("a".to_owned(), "b".to_owned())].into(),
        ..Wanted::default()
    });
    assert_eq!(spec["process"]["terminal"], true);
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(
        spec["annotations"],
        json!({"a": "b", INIT_ANNOTATION: "true"})
    );
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([42]));
    assert_eq!(
        spec["mounts"].as_array().unwrap().last().unwrap(),
        &json!({
            "destination": "/data", "type": "bind", "source": "/tmp",
            "options": ["rbind", "rro", "rprivate"],
        })
    );
}

#[test]
fn what_cannot_be_is_refused_before_there_is_an_image() {
    let host = Host::default();
    let refused = |set: fn(&mut Wanted)| {
        let mut wanted = Wanted::default();
        set(&mut wanted);
        check(&wanted, &host).is_err()
    };
    assert!(!refused(|_| {}));
    assert!(refused(|wanted| wanted.working_dir = "here".to_owned()));
    assert!(refused(|wanted| wanted.oom_score_adj = 1001));
    assert!(refused(|wanted| wanted.pid_mode = "public".to_owned()));
    assert!(refused(|wanted| wanted.cap_add = vec!["FLY".to_owned()]));
    assert!(refused(
        |wanted| wanted.groups = vec!["staff,root".to_owned()]
    ));
}

#[test]
fn another_process_has_the_containers_rights_unless_it_is_privileged() {
    let record = record(Wanted {
        env: vec!["A=1".to_owned()],
        ..Wanted::default()
    });
    let args = ["ls".to_owned()];
    let env = ["A=2".to_owned()];
    let exec = |privileged, working_dir| {
        let exec = Exec {
            args: &args,
            env: &env,
            working_dir,
            tty: true,
            privileged,
        };
        exec_process(&record, &Host::default(), &exec)
    };
    let process = exec(false, "").unwrap();
    serde_json::from_value::<oci_spec::runtime::Process>(process.clone()).unwrap();
    assert_eq!(process["args"], json!(["ls"]));
    assert_eq!(process["cwd"], "/srv");
    let variables = process["env"].as_array().unwrap();
    assert!(variables.contains(&json!("A=2")) && variables.contains(&json!("TERM=xterm")));
    let count = |process: &Value| {
        process["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(count(&process), 14);
    assert_eq!(count(&exec(true, "/").unwrap()), 41);
    assert!(exec(false, "etc").is_err());
}
