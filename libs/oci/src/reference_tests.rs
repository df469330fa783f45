//! The normalisation table, and a round trip over everything the grammar allows.

use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn digest() -> String {
    format!("sha256:{HEX}")
}

#[test]
fn references_are_normalised_as_docker_does() {
    let d = digest();
    // typed, domain (empty: malformed), name, tag, familiar form
    let table: &[(&str, &str, &str, Option<&str>, &str)] = &[
        ("busybox", "docker.io", "library/busybox", None, "busybox"),
        (
            "busybox:1.36",
            "docker.io",
            "library/busybox",
            Some("1.36"),
            "busybox:1.36",
        ),
        ("foo/bar", "docker.io", "foo/bar", None, "foo/bar"),
        (
            "library/debian",
            "docker.io",
            "library/debian",
            None,
            "debian",
        ),
        (
            "docker.io/debian",
            "docker.io",
            "library/debian",
            None,
            "debian",
        ),
        (
            "docker.io/library/debian:12",
            "docker.io",
            "library/debian",
            Some("12"),
            "debian:12",
        ),
        (
            "index.docker.io/debian",
            "docker.io",
            "library/debian",
            None,
            "debian",
        ),
        ("index.docker.io/a/b", "docker.io", "a/b", None, "a/b"),
        (
            "library/a/b",
            "docker.io",
            "library/a/b",
            None,
            "library/a/b",
        ),
        ("localhost/foo", "localhost", "foo", None, "localhost/foo"),
        (
            "localhost",
            "docker.io",
            "library/localhost",
            None,
            "localhost",
        ),
        (
            "localhost:5000",
            "docker.io",
            "library/localhost",
            Some("5000"),
            "localhost:5000",
        ),
        (
            "localhost:5000/foo:x",
            "localhost:5000",
            "foo",
            Some("x"),
            "localhost:5000/foo:x",
        ),
        (
            "127.0.0.1:5000/a/b",
            "127.0.0.1:5000",
            "a/b",
            None,
            "127.0.0.1:5000/a/b",
        ),
        ("[::1]:5000/a", "[::1]:5000", "a", None, "[::1]:5000/a"),
        (
            "[2001:db8::1]/a:t",
            "[2001:db8::1]",
            "a",
            Some("t"),
            "[2001:db8::1]/a:t",
        ),
        (
            "quay.io/a/b/c:v1",
            "quay.io",
            "a/b/c",
            Some("v1"),
            "quay.io/a/b/c:v1",
        ),
        (
            "xn--n3h.com/myimage",
            "xn--n3h.com",
            "myimage",
            None,
            "xn--n3h.com/myimage",
        ),
        (
            "Uppercase/lower",
            "Uppercase",
            "lower",
            None,
            "Uppercase/lower",
        ),
        ("foo_bar.com:8080/x", "", "", None, ""),
        (
            "foo-bar.com:8080/x",
            "foo-bar.com:8080",
            "x",
            None,
            "foo-bar.com:8080/x",
        ),
        (
            "docker.io/localhost/x",
            "docker.io",
            "localhost/x",
            None,
            "docker.io/localhost/x",
        ),
        (
            "docker.io/a.b/x",
            "docker.io",
            "a.b/x",
            None,
            "docker.io/a.b/x",
        ),
        ("a__b/c--d", "docker.io", "a__b/c--d", None, "a__b/c--d"),
    ];
    for (typed, domain, name, tag, familiar) in table {
        let parsed = typed.parse::<Reference>();
        if domain.is_empty() {
            assert!(parsed.is_err(), "{typed} was accepted");
            continue;
        }
        for with_digest in [false, true] {
            let suffix = if with_digest {
                format!("@{d}")
            } else {
                String::new()
            };
            let parsed: Reference = format!("{typed}{suffix}").parse().unwrap();
            assert_eq!(parsed.domain(), *domain, "{typed}");
            assert_eq!(parsed.name().as_str(), *name, "{typed}");
            assert_eq!(parsed.tag().map(Tag::as_str), *tag, "{typed}");
            assert_eq!(parsed.digest().is_some(), with_digest, "{typed}");
            assert_eq!(parsed.to_string(), format!("{familiar}{suffix}"), "{typed}");
        }
    }
}

#[test]
fn malformed_references_are_refused() {
    let d = digest();
    let long_tag = format!("a:{}", "t".repeat(129));
    let long_name = format!("quay.io/{}", "a/".repeat(128) + "a");
    let id_tag = format!("{HEX}:tag");
    for bad in [
        "",
        ":tag",
        "@sha256:",
        "/a",
        "a/",
        "a//b",
        "a:",
        "a@",
        "a:b:c",
        "a:b/c",
        "a b",
        " a",
        "a ",
        "a\n",
        "-a/b",
        "_a",
        "a_",
        "Busybox",
        "foo/Bar",
        "quay.io/Foo",
        "https://quay.io/a",
        "quay.io/",
        "quay.io:/a",
        "quay.io:port/a",
        "-quay.io/a",
        "quay-.io/a",
        "quay..io/a",
        "[::1/a",
        "[]:5000/a",
        "[::1]x/a",
        "[fe80::1%25eth0]:5000/a",
        "a:tag!",
        "a:.tag",
        "a:-tag",
        "a@sha256:abcd",
        "a@sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "a/../b",
        "../a",
        "é",
        HEX,
        &long_tag,
        &long_name,
        &format!("a@{d}@{d}"),
        &format!("a@{d}:tag"),
        &format!("a@{}", d.to_uppercase()),
    ] {
        assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted");
    }
    assert!(
        id_tag.parse::<Reference>().is_ok(),
        "with a tag it is a name"
    );
}

#[test]
fn errors_say_what_is_wrong_with_which_part() {
    let error = |text: &str| text.parse::<Reference>().unwrap_err();
    assert!(matches!(error(""), ReferenceError::Empty));
    assert!(matches!(error(HEX), ReferenceError::ImageId { .. }));
    assert!(matches!(
        error("Busybox"),
        ReferenceError::Name {
            source: NameError::UpperCase { .. },
            ..
        }
    ));
    assert!(matches!(error("a:!"), ReferenceError::Tag { .. }));
    assert!(matches!(error("a@sha256:1"), ReferenceError::Digest { .. }));
    assert!(matches!(error("quay..io/a"), ReferenceError::Domain { .. }));
}

#[test]
fn the_manifest_reference_prefers_the_digest() {
    let of = |text: &str| text.parse::<Reference>().unwrap();
    let d = digest();
    assert_eq!(of("a").manifest_reference(), "latest");
    assert_eq!(of("a:b").manifest_reference(), "b");
    assert_eq!(of(&format!("a:b@{d}")).manifest_reference(), d);
    assert_eq!(of("a").with_default_tag().to_string(), "a:latest");
    assert_eq!(of(&format!("a@{d}")).with_default_tag().tag(), None);
    assert_eq!(of("a").api_host(), "registry-1.docker.io");
    assert_eq!(of("a:b").canonical(), "docker.io/library/a:b");
}

fn a_reference() -> impl Strategy<Value = String> {
    let component = "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}";
    let path = format!("{component}(/{component}){{0,3}}");
    let domain = "([a-zA-Z0-9]{1,5}(-[a-z0-9]{1,3})?(\\.[a-z0-9]{1,4}){0,2}(:[0-9]{1,5})?/)?";
    let tag = "(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,10})?";
    let digest = "(@sha256:[0-9a-f]{64})?";
    proptest::string::string_regex(&format!("{domain}{path}{tag}{digest}")).unwrap()
}

proptest! {
    #[test]
    fn both_forms_are_read_back_as_the_same_reference(text in a_reference()) {
        // A first part that counts as a domain (for its dot, say) may be a bad one: `a_b.c/d`.
        let first = text.split('/').next().unwrap_or_default();
        let special = |c: char| c.is_uppercase() || c == '.' || c == ':';
        if let Ok(parsed) = text.parse::<Reference>() {
            prop_assert_eq!(&parsed.familiar().parse::<Reference>().unwrap(), &parsed);
            prop_assert_eq!(&parsed.canonical().parse::<Reference>().unwrap(), &parsed);
        } else {
            prop_assert!(first.contains(special) || text.len() == 64, "{} was refused", text);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic_or_change_its_mind(text in "\\PC{0,80}") {
        if let Ok(parsed) = text.parse::<Reference>() {
            prop_assert_eq!(parsed.canonical().parse::<Reference>().unwrap(), parsed);
        }
    }
}
