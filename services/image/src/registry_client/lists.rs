//! Lists that come in pages: tags, and a registry's search.

use gantry_oci::Tag;
use gantry_oci::lenient::{self, Shape};
use http::header::{HeaderMap, LINK};
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::error::RegistryError;
use super::exchange::{Exchange, Hop, Target, nothing};
use super::{Access, Client, Credentials, Repository};

/// Bytes of one page.
const PAGE_MAX: usize = 8 << 20;
/// Pages of one list.
const PAGES_MAX: usize = 1000;
/// Tags of one repository.
const TAGS_MAX: usize = 100_000;
/// Where Docker Hub is searched.
const HUB_SEARCH: &str = "index.docker.io";

/// What a search found.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct Found {
    /// The repository's name in its registry.
    pub name: String,
    pub description: String,
    #[serde(rename = "star_count")]
    pub stars: u64,
    #[serde(rename = "is_official")]
    pub official: bool,
    #[serde(rename = "is_automated")]
    pub automated: bool,
}

/// The form of a page of tags or repositories.
const PAGE: Shape = Shape::Record(&[("tags", &Shape::Texts), ("repositories", &Shape::Texts)]);
/// The form of what a search found.
const SEARCH: Shape = Shape::Record(&[(
    "results",
    &Shape::List(&Shape::Record(&[
        ("name", &Shape::Text),
        ("description", &Shape::Text),
        ("star_count", &Shape::Any),
        ("is_official", &Shape::Any),
        ("is_automated", &Shape::Any),
    ])),
)]);

impl Repository {
    /// All tags, as the registry orders them.
    pub async fn tags(&self) -> Result<Vec<Tag>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            // Some write `null` where there are none.
            tags: Option<Vec<String>>,
        }
        let what = format!("the tags of {}", self.name);
        let mut tags = Vec::new();
        let mut next = Some(self.target("tags/list"));
        let mut pages = 0;
        while let Some(target) = next.take() {
            pages += 1;
            let (page, link): (Page, _) = self.page(target, &what, &[]).await?;
            for tag in page.tags.into_iter().flatten() {
                let tag: Tag = tag
                    .parse()
                    .map_err(|_| self.malformed(&what, "one of them is no tag"))?;
                tags.push(tag);
            }
            if pages > PAGES_MAX || tags.len() > TAGS_MAX {
                return Err(self.malformed(&what, "the list does not end"));
            }
            next = link;
        }
        Ok(tags)
    }

    /// One page, and where the next is (RFC 8288).
    async fn page<T: for<'a> Deserialize<'a>>(
        &self,
        target: Target,
        what: &str,
        expect: &[StatusCode],
    ) -> Result<(T, Option<Target>), RegistryError> {
        let response = self.list(target.clone(), what, expect).await?;
        let next = match next_page(response.headers()) {
            Some(link) => Some(self.resolve(&target, Hop::of(&response), &link, what)?),
            None => None,
        };
        let bytes = self.collect(response.into_body(), PAGE_MAX, what).await?;
        let page = lenient::read(&bytes, &PAGE)
            .map_err(|error| self.malformed(what, &error.to_string()))?;
        Ok((page, next))
    }

    async fn list(
        &self,
        target: Target,
        what: &str,
        expect: &[StatusCode],
    ) -> Result<Response<Incoming>, RegistryError> {
        self.ask(Exchange {
            method: Method::GET,
            target,
            headers: HeaderMap::new(),
            body: &nothing,
            what: what.to_owned(),
            expect,
            retry: true,
        })
        .await
    }

    /// Asks `/v1/search`; `None` where the registry has no such thing.
    async fn search(&self, term: &str, limit: u32) -> Result<Option<Vec<Found>>, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            results: Option<Vec<Found>>,
        }
        let what = format!("a search for {term:?}");
        let term = utf8_percent_encode(term, NON_ALPHANUMERIC);
        let target = Target::Path(format!("/v1/search?q={term}&n={limit}"));
        let nowhere = [
            StatusCode::NOT_FOUND,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::GONE,
        ];
        let response = self.list(target, &what, &nowhere).await?;
        if !response.status().is_success() {
            return Ok(None);
        }
        let bytes = self.collect(response.into_body(), PAGE_MAX, &what).await?;
        match lenient::read::<Answer>(&bytes, &SEARCH) {
            Ok(answer) => Ok(Some(answer.results.unwrap_or_default())),
            // A page for people, at a path that is nothing to the registry.
            Err(_) if !bytes.trim_ascii_start().starts_with(b"{") => Ok(None),
            Err(error) => Err(self.malformed(&what, &error.to_string())),
        }
    }

    /// The repositories of a registry whose name has the term in it.
    async fn search_catalog(&self, term: &str, limit: u32) -> Result<Vec<Found>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let what = "the catalogue";
        let term = term.to_lowercase();
        let mut found = Vec::new();
        let mut next = Some(Target::Path(format!("{}/_catalog?n=1000", self.site.base)));
        let mut pages = 0;
        while let Some(target) = next.take()
            && pages < PAGES_MAX
            && found.len() < limit as usize
        {
            pages += 1;
            let (page, link): (Page, _) = self.page(target, what, &[]).await?;
            let names = page.repositories.into_iter().flatten();
            let matching = names.filter(|name| name.contains(&term));
            found.extend(matching.map(|name| Found {
                name,
                ..Found::default()
            }));
            next = link;
        }
        found.truncate(limit as usize);
        Ok(found)
    }
}

/// The `Link` to the next page.
fn next_page(headers: &HeaderMap) -> Option<http::HeaderValue> {
    headers
        .get_all(LINK)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|link| {
            let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
            let is_next = parameters.split(';').any(|parameter| {
                let parameter = parameter.trim().replace('"', "");
                parameter.eq_ignore_ascii_case("rel=next")
            });
            let target = is_next.then_some(target)?;
            http::HeaderValue::from_str(target).ok()
        })
}

impl Client {
    /// Asks a registry for repositories by a term. Empty: Docker Hub.
    pub async fn search(
        &self,
        host: &str,
        term: &str,
        limit: u32,
        credentials: Option<Credentials>,
    ) -> Result<Vec<Found>, RegistryError> {
        let is_hub = gantry_credentials::Server::new(host).is_hub();
        let host = if is_hub { HUB_SEARCH } else { host };
        let registry = self.registry(host, Access::Pull, credentials).await?;
        match registry.search(term, limit).await? {
            Some(mut found) => {
                found.truncate(limit as usize);
                Ok(found)
            }
            None => registry.search_catalog(term, limit).await,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_the_next_page_is_found() {
        let next = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(LINK, value.parse().unwrap());
            }
            next_page(&headers).map(|link| link.to_str().unwrap().to_owned())
        };
        assert_eq!(
            next(&["</v2/a/tags/list?last=x&n=2>; rel=\"next\""]),
            Some("/v2/a/tags/list?last=x&n=2".into())
        );
        assert_eq!(
            next(&["</a>; rel=prev, </b>; x=y; rel=next"]),
            Some("/b".into())
        );
        assert_eq!(next(&["</a>; rel=\"prev\""]), None);
        assert_eq!(next(&["nonsense", "<x"]), None);
        assert_eq!(next(&[]), None);
    }
}
