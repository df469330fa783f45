//! Mounts: `-v SOURCE:TARGET[:OPTIONS]`, `--mount type=…,…`, `--tmpfs TARGET[:OPTIONS]`.

use std::path::{Component, Path};

use gantry_proto::gateway::v1::{Mount, MountType};

use super::id_map;
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
    let refused = |what: &str| ParseError::refusal(wrong(what).to_string());
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(refused("there are too many colons")),
    };
    if source.is_empty() && parts.len() > 1 {
        return Err(wrong("the source is empty"));
    }
    let mut mount = Mount {
        target: target_path(target).map_err(|what| refused(&what))?,
        ..Mount::default()
    };
    mount.short_form = Some(text.to_owned());
    if source.starts_with(['/', '.', '~']) {
        mount.set_type(MountType::Bind);
        mount.source = absolute(source).map_err(|what| wrong(&what))?;
        let parts = [mount.source.as_str(), target, options];
        let parts = &parts[..if options.is_empty() { 2 } else { 3 }];
        mount.short_form = Some(parts.join(":"));
        mount.create_source = true;
    } else {
        if !source.is_empty() && !is_volume_name(source) {
            return Err(refused(&format!(
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
            "nocopy" if mount.r#type() == MountType::Volume => mount.volume_no_copy = true,
            _ if option == "idmap" || option.starts_with("idmap=") => {
                let map = option.strip_prefix("idmap=").unwrap_or_default();
                mount.id_map = Some(id_map::parse(map).map_err(|what| wrong(&what))?);
            }
            "noexec" | "nosuid" | "nodev" | "exec" | "suid" | "dev" => {
                mount.options.push(option.to_owned());
            }
            _ if PROPAGATIONS.contains(&option) => option.clone_into(&mut mount.propagation),
            _ => return Err(refused(&format!("there is no option {option:?}"))),
        }
    }
    Ok(mount)
}

/// One `--tmpfs`.
pub(crate) fn tmpfs(text: &str) -> Parsed<Mount> {
    let wrong = |what: &str| {
        ParseError::refusal(format!(
            "{text:?}: {what}; say TARGET[:OPTIONS], as in /tmp:size=64m,noexec"
        ))
    };
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut mount = Mount {
        target: target_path(target).map_err(|what| wrong(&what))?,
        ..Mount::default()
    };
    mount.set_type(MountType::Tmpfs);
    mount.short_form = Some(options.to_owned());
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
            "{text:?}: {what}; say type=bind|volume|tmpfs|image,source=…,target=…[,readonly]"
        ))
    };
    let refused = |what: &str| ParseError::refusal(wrong(what).to_string());
    let mut mount = Mount::default();
    mount.set_type(MountType::Volume);
    // Keys that are for some types only, and which.
    let mut only: Vec<(String, &[MountType])> = Vec::new();
    let mut recursive_read_only = None;
    let mut writable = false;
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
                "image" => MountType::Image,
                _ => return Err(refused(&format!("there is no type {value:?}"))),
            }),
            "source" | "src" => value.clone_into(&mut mount.source),
            "target" | "dst" | "destination" => {
                mount.target = target_path(value).map_err(|what| refused(&what))?;
            }
            "readonly" | "ro" => mount.read_only = flag()?,
            "rw" => writable = flag()?,
            "bind-propagation" if PROPAGATIONS.contains(&value) => {
                value.clone_into(&mut mount.propagation);
                only.push((key, BIND));
            }
            "bind-propagation" => {
                return Err(wrong(&format!("there is no propagation {value:?}")));
            }
            "bind-nonrecursive" => {
                mount.non_recursive = flag()?;
                only.push((key, BIND));
            }
            "bind-recursive" => {
                match value {
                    "enabled" | "true" | "1" => {}
                    "disabled" | "false" | "0" => mount.non_recursive = true,
                    "writable" | "readonly" => recursive_read_only = Some(value.to_owned()),
                    _ => {
                        return Err(wrong(&format!(
                            "{key} is enabled, disabled, writable or readonly, not {value:?}"
                        )));
                    }
                }
                only.push((key, BIND));
            }
            "tmpfs-size" => {
                mount.tmpfs_size_bytes = size(value)?;
                only.push((key, TMPFS));
            }
            "tmpfs-mode" => {
                mount.tmpfs_mode = mode(value).map_err(|what| wrong(&what))?;
                only.push((key, TMPFS));
            }
            "volume-nocopy" => {
                mount.volume_no_copy = flag()?;
                only.push((key, VOLUME));
            }
            "volume-driver" => {
                value.clone_into(&mut mount.volume_driver);
                only.push((key, VOLUME));
            }
            "volume-opt" | "volume-label" => {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                if name.is_empty() {
                    return Err(wrong(&format!("{key} is of the form {key}=NAME=VALUE")));
                }
                let map = match key.as_str() {
                    "volume-opt" => &mut mount.volume_options,
                    _ => &mut mount.volume_labels,
                };
                map.insert(name.to_owned(), value.to_owned());
                only.push((key, VOLUME));
            }
            "volume-subpath" | "image-subpath" => {
                mount.subpath = subpath(value).map_err(|what| wrong(&what))?;
                let kind = match key.as_str() {
                    "volume-subpath" => VOLUME,
                    _ => IMAGE,
                };
                only.push((key, kind));
            }
            "idmap" => {
                mount.id_map = Some(id_map::parse(value).map_err(|what| wrong(&what))?);
                only.push((key, &[MountType::Bind, MountType::Volume]));
            }
            "consistency" => {}
            _ => return Err(wrong(&format!("there is no key {key:?}"))),
        }
    }
    let kind = mount.r#type();
    if mount.target.is_empty() {
        return Err(wrong("the target is missing"));
    }
    if let Some((key, kinds)) = only.iter().find(|(_, kinds)| !kinds.contains(&kind)) {
        let kinds: Vec<&str> = kinds.iter().map(|kind| type_name(*kind)).collect();
        return Err(wrong(&format!("{key} is for type={}", kinds.join("|"))));
    }
    match recursive_read_only.as_deref() {
        Some(value) if !mount.read_only => {
            return Err(wrong(&format!("bind-recursive={value} needs readonly")));
        }
        Some("readonly") if !matches!(mount.propagation.as_str(), "" | "rprivate") => {
            return Err(wrong(
                "bind-recursive=readonly needs bind-propagation=rprivate",
            ));
        }
        Some("writable") => mount.read_only_non_recursive = true,
        _ => {}
    }
    if writable && (mount.read_only || kind == MountType::Image) {
        return Err(wrong(match kind {
            MountType::Image => "the files of an image cannot be written",
            _ => "rw and readonly contradict each other",
        }));
    }
    match kind {
        MountType::Bind => {
            if mount.source.is_empty() {
                return Err(refused("the source is missing"));
            }
            if mount.source.starts_with('.') {
                mount.source = absolute(&mount.source).map_err(|what| wrong(&what))?;
            }
            if !mount.source.starts_with('/') {
                return Err(refused("the source is not an absolute path"));
            }
        }
        MountType::Tmpfs if !mount.source.is_empty() => {
            return Err(refused("a tmpfs has no source"));
        }
        MountType::Image if mount.source.is_empty() => return Err(refused("the image is missing")),
        MountType::Image => mount.read_only = true,
        MountType::Volume if !mount.source.is_empty() && !is_volume_name(&mount.source) => {
            return Err(refused(&format!(
                "{:?} is not a volume's name",
                mount.source
            )));
        }
        _ => {}
    }
    Ok(mount)
}

const BIND: &[MountType] = &[MountType::Bind];
const TMPFS: &[MountType] = &[MountType::Tmpfs];
const VOLUME: &[MountType] = &[MountType::Volume];
const IMAGE: &[MountType] = &[MountType::Image];

fn type_name(kind: MountType) -> &'static str {
    match kind {
        MountType::Unspecified => "",
        MountType::Bind => "bind",
        MountType::Tmpfs => "tmpfs",
        MountType::Volume => "volume",
        MountType::Image => "image",
    }
}

/// A relative path that leads nowhere else.
fn subpath(text: &str) -> Result<String, String> {
    let mut parts = Path::new(text).components();
    match !text.is_empty()
        && parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "the subpath {text:?} is not a relative path without '..'"
        )),
    }
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

/// A path of this machine as the engine takes it: absolute, and text.
fn absolute(source: &str) -> Result<String, String> {
    let path = std::path::absolute(source)
        .map_err(|error| format!("the source cannot be used: {error}"))?;
    path.into_os_string().into_string().map_err(|path| {
        format!("the source {path:?} is not UTF-8; rename it, or bind-mount it elsewhere")
    })
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
    fn volumes_images_and_binds_have_keys_of_their_own() {
        let volume = mount(
            "type=volume,src=data,dst=/d,volume-nocopy,volume-driver=local,volume-opt=type=tmpfs,volume-opt=o=size=1m,volume-label=a=b,volume-subpath=x/y",
        )
        .unwrap();
        assert!(volume.volume_no_copy);
        assert_eq!(volume.volume_options["type"], "tmpfs");
        assert_eq!(volume.volume_options["o"], "size=1m");
        assert_eq!(volume.volume_labels["a"], "b");
        assert_eq!(
            (volume.volume_driver.as_str(), volume.subpath.as_str()),
            ("local", "x/y")
        );
        let image = mount("type=image,source=debian:12,target=/i,image-subpath=etc").unwrap();
        assert_eq!(image.r#type(), MountType::Image);
        assert!(image.read_only);
        let bind = mount("type=bind,src=/a,dst=/b,ro,bind-recursive=writable").unwrap();
        assert!(bind.read_only_non_recursive && !bind.non_recursive);
        let bind = mount("type=bind,src=/a,dst=/b,idmap=uids=0-5-1;gids=0-6-2").unwrap();
        assert_eq!(bind.id_map.unwrap().gids[0].seen, 6);
        assert!(
            super::volume("data:/d:nocopy,idmap=uids=0-5-1")
                .unwrap()
                .id_map
                .is_some()
        );
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
            "type=bind,source=/a,target=/b,volume-nocopy",
            "type=bind,source=/a,target=/b,bind-recursive=writable",
            "type=bind,source=/a,target=/b,readonly,bind-recursive=readonly,bind-propagation=rshared",
            "type=bind,source=/a,target=/b,bind-recursive=maybe",
            "type=bind,source=/a,target=/b,readonly,rw",
            "type=volume,target=/b,volume-opt==x",
            "type=volume,target=/b,volume-subpath=../x",
            "type=volume,target=/b,image-subpath=x",
            "type=image,target=/b",
            "type=image,source=a,target=/b,rw=true",
            "type=tmpfs,target=/b,idmap",
            "type=bind,source=/a,target=/b,idmap=uids=x",
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
