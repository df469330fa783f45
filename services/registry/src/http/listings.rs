//! Lists: the catalogue, tags, referrers, and a search by name.

use gantry_oci::{Digest, MediaType, RepositoryName};
use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderName, HeaderValue, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::query::Query;
use super::{Answer, json, set};
use crate::Registry;
use crate::error::RegistryError;
use crate::repositories::Page;
use crate::uploads::blocking;

const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Entries in a list when the client does not say how many, and at most.
const PAGE_MAX: usize = 1000;
/// Bytes of descriptors in one answer about referrers: an index may have 4 MiB in all.
const REFERRERS_MAX: usize = 3 << 20;

/// `/v2/_catalog?n=&last=`
pub(super) async fn catalog(registry: &Registry, query: &Query) -> Answer {
    let store = registry.store.clone();
    let all = blocking(move || store.repositories()).await?;
    let page = page(all, query)?;
    let body = serde_json::json!({ "repositories": page.entries });
    let mut response = json(StatusCode::OK, body.to_string());
    if let Some(link) = next_link("/v2/_catalog", &page, query)? {
        set(response.headers_mut(), LINK, &link);
    }
    Ok(response)
}

/// `/v2/<name>/tags/list?n=&last=`
pub(super) async fn tags(registry: &Registry, name: RepositoryName, query: &Query) -> Answer {
    let (store, of) = (registry.store.clone(), name.clone());
    let all = blocking(move || store.tags(&of)).await?;
    let page = page(all, query)?;
    let body = serde_json::json!({ "name": name, "tags": page.entries });
    let mut response = json(StatusCode::OK, body.to_string());
    if let Some(link) = next_link(&format!("/v2/{name}/tags/list"), &page, query)? {
        set(response.headers_mut(), LINK, &link);
    }
    Ok(response)
}

/// `/v2/<name>/referrers/<digest>?artifactType=`; `last` is for our own links.
pub(super) async fn referrers(
    registry: &Registry,
    name: RepositoryName,
    subject: Digest,
    query: &Query,
) -> Answer {
    let (store, of, about) = (registry.store.clone(), name.clone(), subject.clone());
    let all = blocking(move || store.referrers(&of, &about)).await?;
    let filter = query.get("artifactType");
    let last = query.get("last");
    let mut manifests: Vec<String> = Vec::new();
    let mut size = 0;
    let (mut included, mut more) = (None, false);
    for descriptor in all {
        let wanted =
            filter.is_none_or(|wanted| descriptor.artifact_type.as_deref() == Some(wanted));
        if !wanted || last.is_some_and(|last| descriptor.digest.as_str() <= last) {
            continue;
        }
        let entry = serde_json::to_string(&descriptor)
            .map_err(|error| RegistryError::Serialise { source: error })?;
        if size > 0 && size + entry.len() > REFERRERS_MAX {
            more = true;
            break;
        }
        size += entry.len() + 1;
        included = Some(descriptor.digest);
        manifests.push(entry);
    }
    let body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{}]}}"#,
        MediaType::OciIndex,
        manifests.join(",")
    );
    let mut response = json(StatusCode::OK, body);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/vnd.oci.image.index.v1+json"),
    );
    if filter.is_some() {
        headers.insert(
            OCI_FILTERS_APPLIED,
            HeaderValue::from_static("artifactType"),
        );
    }
    if let Some(last) = included.filter(|_| more) {
        let mut link = format!(
            "</v2/{name}/referrers/{subject}?last={}",
            escape(last.as_str())
        );
        if let Some(filter) = filter {
            link.push_str("&artifactType=");
            link.push_str(&escape(filter));
        }
        set(headers, LINK, &format!("{link}>; rel=\"next\""));
    }
    Ok(response)
}

/// `/v1/search?q=&n=&page=`, in the form of Docker Hub's: repositories whose name has the words in it.
pub(super) async fn search(registry: &Registry, query: &Query) -> Answer {
    const SIZE: usize = 25;
    let store = registry.store.clone();
    let all = blocking(move || store.repositories()).await?;
    let text = query.get("q").unwrap_or_default().to_lowercase();
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut found: Vec<RepositoryName> = all
        .into_iter()
        .filter(|name| words.iter().all(|word| name.as_str().contains(word)))
        .collect();
    // The name itself before names that merely have it in them, and short ones before long ones.
    found.sort_by_key(|name| {
        let exact = name.as_str() == text || name.as_str().ends_with(&format!("/{text}"));
        (!exact, name.as_str().len())
    });
    let size = query.number("n")?.unwrap_or(SIZE).clamp(1, 100);
    let page = query.number("page")?.unwrap_or(1).max(1);
    let results: Vec<serde_json::Value> = found
        .iter()
        .skip((page - 1).saturating_mul(size))
        .take(size)
        .map(|name| {
            serde_json::json!({
                "name": name,
                "description": "",
                "star_count": 0,
                "is_official": false,
                "is_trusted": false,
                "is_automated": false,
            })
        })
        .collect();
    let body = serde_json::json!({
        "query": query.get("q").unwrap_or_default(),
        "num_results": found.len(),
        "num_pages": found.len().div_ceil(size),
        "page": page,
        "page_size": size,
        "results": results,
    });
    Ok(json(StatusCode::OK, body.to_string()))
}

fn page<T: AsRef<str>>(all: Vec<T>, query: &Query) -> Result<Page<T>, RegistryError> {
    let limit = query.number("n")?.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    Ok(Page::of(all, query.get("last"), limit))
}

/// Where the rest of a list is (RFC 8288). With `n=0` there is nothing to go on from.
fn next_link<T: AsRef<str>>(
    path: &str,
    page: &Page<T>,
    query: &Query,
) -> Result<Option<String>, RegistryError> {
    let limit = query.number("n")?.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    Ok(page.entries.last().filter(|_| page.more).map(|last| {
        format!(
            "<{path}?last={}&n={limit}>; rel=\"next\"",
            escape(last.as_ref())
        )
    }))
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
