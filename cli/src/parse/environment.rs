//! Variables and labels, from flags and from files.
//!
//! `KEY` without a value takes the caller's own; where the caller has none, the
//! variable is taken out of the container's environment.

use std::collections::HashMap;
use std::env;
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
            variables.push(filled(&line));
        }
    }
    for flag in flags {
        if flag.is_empty() || flag.starts_with('=') {
            return Err(ParseError::new(format!(
                "{flag:?} names no variable; say KEY=VALUE"
            )));
        }
        variables.push(filled(flag));
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

/// With the caller's own value where there is none.
fn filled(text: &str) -> String {
    if text.contains('=') {
        return text.to_owned();
    }
    match env::var(text) {
        Ok(value) => format!("{text}={value}"),
        Err(_) => text.to_owned(),
    }
}

/// The lines of a file without comments and empty ones. Values are as they are:
/// neither quotes nor blanks at the end are taken away.
fn lines(path: &Path) -> Parsed<Vec<String>> {
    let text = fs::read_to_string(path)
        .map_err(|error| ParseError::new(format!("cannot read the file {path:?}: {error}")))?;
    Ok(text
        .strip_prefix('\u{feff}')
        .unwrap_or(&text)
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
        fs::write(&file, "# comment\n\n  A=1 \nB=\"quoted\"\nPATH\n").unwrap();
        let flags = ["C=x=y".to_owned(), "GANTRY_NO_SUCH_VARIABLE".to_owned()];
        let path = env::var("PATH").unwrap();
        assert_eq!(
            variables(&[file], &flags).unwrap(),
            [
                "A=1 ".to_owned(),
                "B=\"quoted\"".to_owned(),
                format!("PATH={path}"),
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
    fn a_label_needs_no_value() {
        let none: [&str; 0] = [];
        let labels = labels(&none, &["a".to_owned(), "b=1".to_owned()]).unwrap();
        assert_eq!(labels["a"], "");
        assert_eq!(labels["b"], "1");
    }
}
