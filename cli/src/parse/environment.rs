//! Variables and labels, from flags and from files.
//!
//! `KEY` without a value takes the caller's own. Where the caller has none, a flag
//! takes the variable out of the container's environment, and a line of a file
//! changes nothing: both as Docker has it.
//!
//! The engine's interface takes text: a value that is not UTF-8 is an error that
//! names it, and is never replaced or left out.

use std::collections::HashMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::{ParseError, Parsed};

/// All variables: those of the files, then those of the flags.
pub(crate) fn variables(files: &[impl AsRef<Path>], flags: &[String]) -> Parsed<Vec<String>> {
    let mut variables = Vec::new();
    for file in files {
        for line in lines(file.as_ref())? {
            let key = line.split('=').next().unwrap_or_default();
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(ParseError::new(format!(
                    "{:?}: {key:?} is not a name of a variable",
                    file.as_ref()
                )));
            }
            match own_value(&line)? {
                Some(variable) => variables.push(variable),
                None if line.contains('=') => variables.push(line),
                None => {}
            }
        }
    }
    for flag in flags {
        if flag.is_empty() || flag.starts_with('=') {
            return Err(ParseError::new(format!(
                "{flag:?} names no variable; say KEY=VALUE"
            )));
        }
        variables.push(own_value(flag)?.unwrap_or_else(|| flag.clone()));
    }
    Ok(variables)
}

/// All labels; a flag wins over a file.
pub(crate) fn labels(
    files: &[impl AsRef<Path>],
    flags: &[String],
) -> Parsed<HashMap<String, String>> {
    let mut labels = HashMap::new();
    let mut texts = Vec::new();
    for file in files {
        texts.extend(lines(file.as_ref())?);
    }
    for text in texts.iter().chain(flags) {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err(ParseError::new(format!(
                "{text:?} names no label; say KEY=VALUE"
            )));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// `KEY=VALUE` pairs, as of `--sysctl`.
pub(crate) fn pairs(flag: &str, values: &[String]) -> Parsed<HashMap<String, String>> {
    values
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(ParseError::new(format!(
                "{flag} {text:?} is not of the form KEY=VALUE"
            ))),
        })
        .collect()
}

/// `KEY=VALUE` with the caller's own value, for a `KEY` without one that the
/// caller has.
fn own_value(text: &str) -> Parsed<Option<String>> {
    // No variable has a NUL byte in its name, and the environment panics at one.
    if text.contains(['=', '\0']) {
        return Ok(None);
    }
    env::var_os(text)
        .map(|value| with_value(text, value))
        .transpose()
}

fn with_value(name: &str, value: OsString) -> Parsed<String> {
    match value.into_string() {
        Ok(value) => Ok(format!("{name}={value}")),
        Err(value) => Err(ParseError::new(format!(
            "the variable {name} has the value {value:?}, which is not UTF-8; give it another value, or leave it out"
        ))),
    }
}

/// The lines of a file without comments and empty ones. Values are as they are:
/// neither quotes nor blanks at the end are taken away.
fn lines(path: &Path) -> Parsed<Vec<String>> {
    let bytes = fs::read(path)
        .map_err(|error| ParseError::new(format!("cannot read the file {path:?}: {error}")))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        ParseError::new(format!("{path:?}: line {line} is not UTF-8"))
    })?;
    Ok(text
        .strip_prefix('\u{feff}')
        .unwrap_or(text)
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_files_then_flags_then_the_caller() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        let text = "# comment\n\n  A=1 \nB=\"quoted\"\nPATH\nGANTRY_NO_SUCH_VARIABLE\nA=2\n";
        fs::write(&file, text).unwrap();
        let flags = ["C=x=y".to_owned(), "GANTRY_NO_SUCH_VARIABLE".to_owned()];
        let path = env::var("PATH").unwrap();
        assert_eq!(
            variables(&[file], &flags).unwrap(),
            [
                "A=1 ".to_owned(),
                "B=\"quoted\"".to_owned(),
                format!("PATH={path}"),
                "A=2".to_owned(),
                "C=x=y".to_owned(),
                "GANTRY_NO_SUCH_VARIABLE".to_owned()
            ]
        );
    }

    #[test]
    fn a_bad_name_is_refused_and_a_missing_file_is_named() {
        let none: [&str; 0] = [];
        assert!(variables(&none, &["=x".to_owned()]).is_err());
        let error = variables(&["/nonexistent/env"], &[]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/env"));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        fs::write(&file, "A B=1\n").unwrap();
        assert!(variables(&[file], &[]).is_err());
    }

    #[test]
    fn what_is_not_utf_8_is_refused_by_its_name() {
        use std::os::unix::ffi::OsStringExt as _;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        fs::write(&file, b"A=1\n\nB=\xff\n").unwrap();
        let none: [String; 0] = [];
        for error in [
            variables(&[&file], &none).unwrap_err(),
            labels(&[&file], &none).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.contains("env\": line 3 is not UTF-8"), "{text}");
        }
        let value = OsString::from_vec(b"x\xff".to_vec());
        let text = with_value("NAME", value).unwrap_err().to_string();
        assert!(text.contains("NAME") && text.contains("UTF-8"), "{text}");
    }

    #[test]
    fn a_label_needs_no_value() {
        let none: [&str; 0] = [];
        let labels = labels(&none, &["a".to_owned(), "b=1".to_owned()]).unwrap();
        assert_eq!(labels["a"], "");
        assert_eq!(labels["b"], "1");
    }
}
