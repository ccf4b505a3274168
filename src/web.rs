//! The web page at the admin address: files that are part of the program, and what keeps other pages from using the endpoint in the
//! name of whoever has it open.
//!
//! The page itself holds nothing and asks for no token; what it shows comes from `/api/*`, which does. It loads nothing from elsewhere.

use axum::Router;
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const PAGE: &str = include_str!("web/index.html");

/// By name, with the type.
const ASSETS: [(&str, &str, &str); 11] = [
    ("actions.js", JAVASCRIPT, include_str!("web/actions.js")),
    ("api.js", JAVASCRIPT, include_str!("web/api.js")),
    ("app.js", JAVASCRIPT, include_str!("web/app.js")),
    ("dom.js", JAVASCRIPT, include_str!("web/dom.js")),
    ("format.js", JAVASCRIPT, include_str!("web/format.js")),
    ("graph.js", JAVASCRIPT, include_str!("web/graph.js")),
    ("reconcile.js", JAVASCRIPT, include_str!("web/reconcile.js")),
    ("state.js", JAVASCRIPT, include_str!("web/state.js")),
    ("views.js", JAVASCRIPT, include_str!("web/views.js")),
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("web/style.css"),
    ),
    ("icon.svg", "image/svg+xml", include_str!("web/icon.svg")),
];
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Nothing but what comes from here: no other host, no script or style in the page itself, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Serves the page's files below `/assets`.
pub fn assets<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/assets/{name}", get(asset))
}

/// The page for browsers, `text` for everybody else.
pub fn page_or(headers: &HeaderMap, text: String) -> Response {
    let accepted = headers.get(header::ACCEPT);
    let accepted = accepted.and_then(|value| value.to_str().ok());
    match accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        true => file("text/html; charset=utf-8", PAGE),
        false => text.into_response(),
    }
}

async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, _, _)| *known == name) {
        Some((_, kind, text)) => file(kind, text),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, kind),
        // Another version of the program has other files under the same names.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

/// Whether names in `Host` are to be believed: where nothing is asked for, whoever makes a name lead here could read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// A token is asked for, which no page of another name has.
    Any,
    /// Only addresses, and `localhost`.
    Addresses,
}

/// Refuses what a page of another origin sends, and what is sent to a name that somebody has made up.
pub fn guarded<S: Clone + Send + Sync + 'static>(router: Router<S>, names: Names) -> Router<S> {
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let why = refusal(request.method(), request.headers(), names);
        async move {
            match why {
                None => next.run(request).await,
                Some(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
            }
        }
    }))
}

fn refusal(method: &Method, headers: &HeaderMap, names: Names) -> Option<&'static str> {
    let text = |name: HeaderName| headers.get(name).map(HeaderValue::as_bytes);
    let host = text(header::HOST).unwrap_or_default();
    if names == Names::Addresses && !is_address(host) {
        return Some(
            "without a token this endpoint answers only under its address or `localhost`: set admin.token to use another name",
        );
    }
    if method.is_safe() {
        // What it answers, another page cannot read.
        return None;
    }
    let site = text(HeaderName::from_static("sec-fetch-site"));
    let origin = text(header::ORIGIN);
    let is_other = match (site, origin) {
        (Some(site), _) => site != b"same-origin" && site != b"none",
        (None, Some(origin)) => !is_origin(origin, host),
        // Not a browser.
        (None, None) => false,
    };
    is_other.then_some("another page has sent this")
}

/// Whether a page of this origin was served by this host.
fn is_origin(origin: &[u8], host: &[u8]) -> bool {
    let schemes = [b"http://".as_slice(), b"https://"];
    let mut rests = schemes
        .iter()
        .filter_map(|scheme| origin.strip_prefix(*scheme));
    rests.any(|rest| rest == host)
}

/// `127.0.0.1:9187`, `[::1]`, `localhost:9187`; nothing at all is no browser's.
fn is_address(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.is_empty() || name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).expect("a value");
            (HeaderName::from_static(name), value)
        });
        pairs.collect()
    }

    #[test]
    fn what_another_page_sends_is_refused() {
        let post = |pairs: &[_]| refusal(&Method::POST, &headers(pairs), Names::Any);
        let host = ("host", "lockstep.example:9187");
        assert_eq!(post(&[host]), None, "curl");
        assert_eq!(post(&[host, ("sec-fetch-site", "same-origin")]), None);
        for site in ["cross-site", "same-site"] {
            assert!(post(&[host, ("sec-fetch-site", site)]).is_some(), "{site}");
        }
        let own = ("origin", "https://lockstep.example:9187");
        assert_eq!(post(&[host, own]), None);
        for origin in ["https://evil.example", "null", "http://lockstep.example"] {
            assert!(post(&[host, ("origin", origin)]).is_some(), "{origin}");
        }
        let cross = headers(&[host, ("sec-fetch-site", "cross-site")]);
        assert_eq!(refusal(&Method::GET, &cross, Names::Any), None, "a link");
    }

    #[test]
    fn a_name_is_believed_only_where_a_token_is_asked_for() {
        let get = |host| refusal(&Method::GET, &headers(&[("host", host)]), Names::Addresses);
        for host in [
            "127.0.0.1:9187",
            "[::1]:9187",
            "::1",
            "localhost",
            "localhost:9187",
            "10.0.0.7",
        ] {
            assert_eq!(get(host), None, "{host}");
        }
        for host in [
            "evil.example:9187",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
        ] {
            assert!(get(host).is_some(), "{host}");
        }
        assert_eq!(refusal(&Method::GET, &headers(&[]), Names::Addresses), None);
    }
}
