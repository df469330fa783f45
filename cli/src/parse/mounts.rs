//! Mounts: `-v SOURCE:TARGET[:OPTIONS]`, `--mount type=…,…`, `--tmpfs TARGET[:OPTIONS]`.

use std::path::Path;

use gantry_proto::gateway::v1::{Mount, MountType};

use super::sizes::size;
use super::{ParseError, Parsed};

const PROPAGATIONS: [&str; 6] = [
    "private", "rprivate", "rshared", "rslave", "shared", "slave",
];

/// One `-v`: a bind mount where the source is a path, else a volume.
pub(crate) fn volume(text: &str) -> Parsed<Mount> {
    let wrong = |what: &str| {
        ParseError::new(format!(
            "{text:?}: {what}; say SOURCE:TARGET[:OPTIONS], as in /srv/data:/data:ro"
        ))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(wrong("there are too many colons")),
    };
    if source.is_empty() && parts.len() > 1 {
        return Err(wrong("the source is empty"));
    }
    let mut mount = Mount {
        target: target_path(target).map_err(|what| wrong(&what))?,
        ..Mount::default()
    };
    if source.starts_with(['/', '.', '~']) {
        let source = std::path::absolute(source)
            .map_err(|error| wrong(&format!("the source cannot be used: {error}")))?;
        mount.set_type(MountType::Bind);
        mount.source = source.to_string_lossy().into_owned();
        mount.create_source = true;
    } else {
        if !source.is_empty() && !is_volume_name(source) {
            return Err(wrong(&format!(
                "{source:?} is neither an absolute path nor a volume's name"
            )));
        }
        mount.set_type(MountType::Volume);
        mount.source = source.to_owned();
    }
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            // Labels and caches of other systems mean nothing here.
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "nocopy" if mount.r#type() == MountType::Volume => {
                mount.options.push(option.to_owned());
            }
            "noexec" | "nosuid" | "nodev" | "exec" | "suid" | "dev" => {
                mount.options.push(option.to_owned());
            }
            _ if PROPAGATIONS.contains(&option) => option.clone_into(&mut mount.propagation),
            _ => return Err(wrong(&format!("there is no option {option:?}"))),
        }
    }
    Ok(mount)
}

/// One `--tmpfs`.
pub(crate) fn tmpfs(text: &str) -> Parsed<Mount> {
    let wrong = |what: &str| {
        ParseError::new(format!(
            "{text:?}: {what}; say TARGET[:OPTIONS], as in /tmp:size=64m,noexec"
        ))
    };
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = Mount {
        target: target_path(target).map_err(|what| wrong(&what))?,
        ..Mount::default()
    };
    mount.set_type(MountType::Tmpfs);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => mount.tmpfs_size_bytes = size(value)?,
            Some(("mode", value)) => {
                mount.tmpfs_mode = mode(value).map_err(|what| wrong(&what))?;
            }
            None if option == "ro" => mount.read_only = true,
            None if option == "rw" => {}
            _ => mount.options.push(option.to_owned()),
        }
    }
    Ok(mount)
}

/// One `--mount`: comma-separated keys, a field with a comma in double quotes.
pub(crate) fn mount(text: &str) -> Parsed<Mount> {
    let wrong = |what: &str| {
        ParseError::new(format!(
            "{text:?}: {what}; say type=bind|volume|tmpfs,source=…,target=…[,readonly]"
        ))
    };
    let mut mount = Mount::default();
    mount.set_type(MountType::Volume);
    let mut tmpfs_only = None;
    let mut bind_only = None;
    for field in fields(text).map_err(wrong)? {
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        let has_value = field.contains('=');
        let flag = || match value {
            "" if !has_value => Ok(true),
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(wrong(&format!("{key} is true or false, not {value:?}"))),
        };
        let key = key.to_ascii_lowercase();
        match key.as_str() {
            "type" => mount.set_type(match value {
                "bind" => MountType::Bind,
                "volume" => MountType::Volume,
                "tmpfs" => MountType::Tmpfs,
                _ => return Err(wrong(&format!("there is no type {value:?}"))),
            }),
            "source" | "src" => value.clone_into(&mut mount.source),
            "target" | "dst" | "destination" => {
                mount.target = target_path(value).map_err(|what| wrong(&what))?;
            }
            "readonly" | "ro" => mount.read_only = flag()?,
            "bind-propagation" if PROPAGATIONS.contains(&value) => {
                value.clone_into(&mut mount.propagation);
                bind_only = Some(key);
            }
            "bind-propagation" => {
                return Err(wrong(&format!("there is no propagation {value:?}")));
            }
            "bind-nonrecursive" => {
                mount.non_recursive = flag()?;
                bind_only = Some(key);
            }
            "bind-recursive" => {
                mount.non_recursive = value == "disabled";
                bind_only = Some(key);
            }
            "tmpfs-size" => {
                mount.tmpfs_size_bytes = size(value)?;
                tmpfs_only = Some(key);
            }
            "tmpfs-mode" => {
                mount.tmpfs_mode = mode(value).map_err(|what| wrong(&what))?;
                tmpfs_only = Some(key);
            }
            "volume-nocopy" => {
                if flag()? {
                    mount.options.push("nocopy".to_owned());
                }
            }
            "consistency" => {}
            _ => return Err(wrong(&format!("there is no key {key:?}"))),
        }
    }
    let kind = mount.r#type();
    if mount.target.is_empty() {
        return Err(wrong("the target is missing"));
    }
    if let (Some(key), true) = (&tmpfs_only, kind != MountType::Tmpfs) {
        return Err(wrong(&format!("{key} is for type=tmpfs")));
    }
    if let (Some(key), true) = (&bind_only, kind != MountType::Bind) {
        return Err(wrong(&format!("{key} is for type=bind")));
    }
    match kind {
        MountType::Bind => {
            if mount.source.is_empty() {
                return Err(wrong("the source is missing"));
            }
            if mount.source.starts_with('.') {
                let source = std::path::absolute(&mount.source)
                    .map_err(|error| wrong(&format!("the source cannot be used: {error}")))?;
                mount.source = source.to_string_lossy().into_owned();
            }
            if !mount.source.starts_with('/') {
                return Err(wrong("the source is not an absolute path"));
            }
        }
        MountType::Tmpfs if !mount.source.is_empty() => {
            return Err(wrong("a tmpfs has no source"));
        }
        MountType::Volume if !mount.source.is_empty() && !is_volume_name(&mount.source) => {
            return Err(wrong(&format!("{:?} is not a volume's name", mount.source)));
        }
        _ => {}
    }
    Ok(mount)
}

/// The fields of one CSV record.
fn fields(text: &str) -> Result<Vec<String>, &'static str> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let Some(field) = fields.last_mut() else {
            break;
        };
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted {
        return Err("a quote does not end");
    }
    Ok(fields)
}

fn target_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("the target {text:?} is not an absolute path"));
    }
    if Path::new(text).components().count() == 1 {
        return Err("the target must not be /".to_owned());
    }
    Ok(text.to_owned())
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| format!("{text:?} is not a mode in octal digits"))
}

/// [a-zA-Z0-9][a-zA-Z0-9_.-]+
fn is_volume_name(text: &str) -> bool {
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_bound_and_a_name_is_a_volume() {
        let bind = volume("/srv/data:/data:ro,rslave").unwrap();
        assert_eq!(bind.r#type(), MountType::Bind);
        assert_eq!(
            (bind.source.as_str(), bind.target.as_str()),
            ("/srv/data", "/data")
        );
        assert!(bind.read_only && bind.create_source);
        assert_eq!(bind.propagation, "rslave");

        let named = volume("data:/data").unwrap();
        assert_eq!(named.r#type(), MountType::Volume);
        assert_eq!(named.source, "data");
        let anonymous = volume("/data").unwrap();
        assert_eq!(anonymous.r#type(), MountType::Volume);
        assert_eq!(anonymous.source, "");

        let relative = volume("./x:/data").unwrap();
        let here = std::env::current_dir().unwrap().join("x");
        assert_eq!(Path::new(&relative.source), here);
    }

    #[test]
    fn what_is_not_a_volume_is_refused() {
        for bad in [
            "",
            "x:y",
            ":/data",
            "/a:/b:bogus",
            "/a:/b:ro:z",
            "a b:/x",
            "/a:/",
            "x:/y:nope",
        ] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mount_has_keys() {
        let bind = mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rshared").unwrap();
        assert!(bind.read_only && !bind.create_source);
        assert_eq!(bind.propagation, "rshared");
        let quoted = mount("type=bind,\"source=/with,comma\",target=/b").unwrap();
        assert_eq!(quoted.source, "/with,comma");
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap();
        assert_eq!((tmpfs.tmpfs_size_bytes, tmpfs.tmpfs_mode), (1 << 20, 0o700));
        let named = mount("source=data,target=/d,ro=false").unwrap();
        assert_eq!(named.r#type(), MountType::Volume);
        assert!(!named.read_only);
    }

    #[test]
    fn a_mount_that_makes_no_sense_is_refused() {
        for bad in [
            "",
            "type=bind,target=/b",
            "type=bind,source=/a",
            "type=bind,source=a,target=/b",
            "type=nfs,target=/b",
            "type=tmpfs,source=/a,target=/b",
            "type=bind,source=/a,target=/b,tmpfs-size=1m",
            "type=tmpfs,target=/b,bind-propagation=shared",
            "type=bind,source=/a,target=b",
            "type=bind,source=/a,target=/b,colour=red",
            "type=bind,source=/a,target=/b,readonly=maybe",
            "type=bind,\"source=/a,target=/b",
        ] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tmpfs_has_a_size_and_options() {
        let mount = tmpfs("/t:size=64m,mode=1770,noexec,ro").unwrap();
        assert_eq!(mount.tmpfs_size_bytes, 64 << 20);
        assert_eq!(mount.tmpfs_mode, 0o1770);
        assert_eq!(mount.options, ["noexec"]);
        assert!(mount.read_only);
        assert!(tmpfs("t").is_err());
    }
}
