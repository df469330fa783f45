//! Reading `WWW-Authenticate` (RFC 9110, section 11.6.1).

use std::collections::HashMap;

/// What a registry wants before it answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Challenge {
    Basic,
    /// A token from the service at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the headers of an answer; Bearer is preferred, as it is meant for one repository.
    pub(super) fn read<'a>(values: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for (scheme, mut parameters) in values.flat_map(split) {
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameters.remove("realm")
            {
                return Some(Self::Bearer {
                    realm,
                    service: parameters.remove("service"),
                    scope: parameters.remove("scope"),
                });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

/// Splits a header into its challenges: a scheme, and parameters by lower-case name.
fn split(header: &str) -> Vec<(String, HashMap<String, String>)> {
    let mut challenges: Vec<(String, HashMap<String, String>)> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| c == '=' || c == ',' || c.is_whitespace())
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        if let Some(value) = after.strip_prefix('=') {
            let (value, after) = read_value(value.trim_start());
            if let Some((_, parameters)) = challenges.last_mut() {
                parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = after;
        } else {
            if !word.is_empty() {
                challenges.push((word.to_owned(), HashMap::new()));
            }
            rest = after;
        }
        rest = rest.trim_start_matches(|c: char| c == ',' || c.is_whitespace());
    }
    challenges
}

/// A token or a quoted string, and what comes after it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| c == ',' || c.is_whitespace())
            .unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(header: &str) -> Option<Challenge> {
        Challenge::read(std::iter::once(header))
    }

    fn bearer(realm: &str, service: &str, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: Some(service.into()),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn registries_challenges_are_read() {
        assert_eq!(
            read(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#
            ),
            bearer(
                "https://auth.docker.io/token",
                "registry.docker.io",
                Some("repository:a/b:pull,push")
            )
        );
        assert_eq!(
            read(r#"bearer Realm = "r" , service=s"#),
            bearer("r", "s", None)
        );
        assert_eq!(
            read(r#"Basic realm="x, y", Bearer realm="r\"q",service="s""#),
            bearer("r\"q", "s", None)
        );
        assert_eq!(read(r#"Basic realm="Registry""#), Some(Challenge::Basic));
        assert_eq!(read("Negotiate"), None);
        assert_eq!(read(""), None);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic_or_hang(header in "[A-Za-z=\", \\\\]{0,40}") {
            let _ = read(&header);
        }
    }
}
