//! The registry's token service.

use axum::body::Body;
use axum::response::Response;
use http::Method;

use super::{Content, Registry, parameter, plain};

impl Registry {
    /// The token service.
    pub(super) fn token(
        &self,
        content: &mut Content,
        method: &Method,
        query: &str,
        authorization: Option<&str>,
        body: &[u8],
    ) -> Response {
        let form = String::from_utf8_lossy(body).into_owned();
        let (known, asked) = if method == Method::POST {
            let token = parameter(&form, "refresh_token");
            (token.as_deref() == Some("a-long-lived-one"), form.as_str())
        } else {
            // "bob:secret"
            (authorization == Some("Basic Ym9iOnNlY3JldA=="), query)
        };
        if !known || parameter(asked, "service").as_deref() != Some("mock") {
            return plain(401);
        }
        let scope = parameter(asked, "scope").unwrap_or_default();
        let token = format!("t{}", content.tokens.len());
        let life = content.token_life;
        content.tokens.insert(token.clone(), (scope, life));
        let refresh = match parameter(asked, "offline_token") {
            Some(_) => r#","refresh_token":"a-long-lived-one""#,
            None => "",
        };
        Response::new(Body::from(format!(
            r#"{{"token":"{token}","expires_in":300{refresh}}}"#
        )))
    }
}

/// Whether a token is good for what is asked: for this repository, and not used up.
pub(super) fn lets_in(content: &mut Content, authorization: Option<&str>, path: &str) -> bool {
    let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
    let Some((scope, left)) = token.and_then(|token| content.tokens.get_mut(token)) else {
        return false;
    };
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    let name = ["/manifests/", "/blobs/", "/tags/"]
        .iter()
        .find_map(|part| rest.split_once(part))
        .map_or("", |(name, _)| name);
    if *left == 0 || !scope.contains(&format!("repository:{name}:")) && !name.is_empty() {
        return false;
    }
    *left -= 1;
    true
}
