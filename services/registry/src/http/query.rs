//! The parameters after the question mark.

use percent_encoding::percent_decode_str;

use crate::error::RegistryError;

/// Parameters in their order; a name may come more than once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let decode = |part: &str| {
            let spaced = part.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        Self(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    // Media types have plus signs in them, which many clients do not escape.
                    let value = if name == "artifactType" {
                        percent_decode_str(value).decode_utf8_lossy().into_owned()
                    } else {
                        decode(value)
                    };
                    (decode(name), value)
                })
                .collect(),
        )
    }

    /// The first value of a name, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// All values of a name.
    pub(crate) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A value that is a number.
    pub(crate) fn number(&self, name: &'static str) -> Result<Option<usize>, RegistryError> {
        self.get(name)
            .map(|value| {
                value.parse().map_err(|_| RegistryError::Pagination {
                    name,
                    value: value.to_owned(),
                })
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_kept_in_order() {
        let query = Query::parse("tag=a&tag=b%2Fc&n=3&q=two+words&artifactType=a/b+json&x");
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b/c"]);
        assert_eq!(query.number("n").unwrap(), Some(3));
        assert_eq!(query.get("q"), Some("two words"));
        assert_eq!(query.get("artifactType"), Some("a/b+json"));
        assert_eq!(query.get("x"), None);
        assert!(Query::parse("n=-1").number("n").is_err());
    }
}
