//! Archives that the service fetches itself.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::get;
use futures::StreamExt as _;
use gantry_image::error::ImageError;
use gantry_image::image::Image;
use gantry_image::import::ImportOptions;
use gantry_kit::fault::chain;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, gzip};
use crate::fixture::Fixture;

fn tar() -> Vec<u8> {
    Archive::new().file("f", vec![7; 500_000]).finish()
}

/// A server of archives. Its address.
async fn serve() -> String {
    let routes = Router::new()
        .route("/dir/x.tar", get(|| async { tar() }))
        .route("/x.tgz", get(|| async { gzip(&tar()) }))
        .route("/moved", get(|| async { Redirect::temporary("/to") }))
        .route("/to", get(|| async { Redirect::permanent("dir/x.tar") }))
        .route("/circle", get(|| async { Redirect::temporary("/circle") }))
        .route("/page", get(|| async { "<html>not an archive</html>" }))
        .route(
            "/secret",
            get(|| async { (StatusCode::FORBIDDEN, "not yours") }),
        )
        .route(
            "/broken",
            get(|| async {
                let half = Bytes::from(tar()[..100_000].to_vec());
                let pieces = [Ok(half), Err(std::io::Error::other("broken off"))];
                Body::from_stream(futures::stream::iter(pieces))
            }),
        )
        .route(
            "/stuck",
            get(|| async {
                let some = Ok::<_, Infallible>(Bytes::from(tar()[..100_000].to_vec()));
                let never = futures::stream::pending();
                Body::from_stream(futures::stream::iter([some]).chain(never))
            }),
        );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

async fn import(fixture: &Fixture, url: &str) -> Result<Arc<Image>, ImageError> {
    let options = ImportOptions {
        reference: Some("fetched".into()),
        changes: vec!["CMD /f".into()],
        ..ImportOptions::default()
    };
    let cancel = CancellationToken::new();
    fixture.store.import_from(&options, url, &cancel).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_fetched_packed_or_not_and_through_redirects() {
    let fixture = Fixture::new();
    let server = serve().await;
    for path in ["/dir/x.tar", "/x.tgz", "/moved", "/dir/x.tar?key=1#part"] {
        let image = import(&fixture, &format!("{server}{path}")).await.unwrap();
        assert_eq!(image.size(), 500_000, "{path}");
        assert_eq!(image.config.config.cmd.as_ref().unwrap()[2], "/f");
        assert_eq!(fixture.store.resolve("fetched").unwrap().id(), image.id());
        let shown = path.split('?').next().unwrap();
        let comment = image.config.history[0].comment.as_deref();
        assert_eq!(comment, Some(&*format!("Imported from {server}{shown}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_fails_names_the_url_and_why_and_leaves_nothing() {
    let fixture = Fixture::new();
    let server = serve().await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/x", listener.local_addr().unwrap())
    };
    for (url, why) in [
        (format!("{server}/none"), "answered 404 Not Found"),
        (format!("{server}/secret"), "answered 403 Forbidden"),
        (format!("{server}/circle"), "redirected more than 10 times"),
        (format!("{server}/broken"), "broke"),
        (nobody, "cannot be reached"),
        ("ftp://h/x".to_owned(), "not a URL of the form"),
        ("http://u:p@h/x".to_owned(), "it has a user name"),
    ] {
        let error = import(&fixture, &url).await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains(&url) && text.contains(why), "{text}");
    }
    let error = import(&fixture, &format!("{server}/page"))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }), "{error:?}");
    assert_eq!(fixture.content_files(), [""; 0]);
    assert_eq!(fixture.store.unfinished_downloads().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_options_is_said_before_anything_is_fetched() {
    let fixture = Fixture::new();
    let options = ImportOptions {
        changes: vec!["RUN x".into()],
        ..ImportOptions::default()
    };
    let cancel = CancellationToken::new();
    let import = fixture
        .store
        .import_from(&options, "http://127.0.0.1:1/", &cancel);
    assert!(matches!(import.await, Err(ImageError::Change { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_cancelled_leaves_nothing() {
    let fixture = Fixture::new();
    let server = serve().await;
    let cancel = CancellationToken::new();
    let store = fixture.store.clone();
    let importing = tokio::spawn({
        let cancel = cancel.clone();
        async move {
            let url = format!("{server}/stuck");
            store
                .import_from(&ImportOptions::default(), &url, &cancel)
                .await
        }
    });
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while fixture.store.unfinished_downloads().unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "it never began");
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    let error = importing.await.unwrap().unwrap_err();
    assert!(matches!(error, ImageError::Cancelled { .. }), "{error:?}");
    assert_eq!(fixture.content_files(), [""; 0]);
}
