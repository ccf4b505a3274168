//! Asks the admin endpoint of a running pipeline.

use std::net::SocketAddr;
use std::time::Duration;

use lockstep_core::{Error, ErrorKind};
use lockstep_pipelines::file::Admin;
use serde_json::Value;

/// How long the endpoint may take to answer a question.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A header of what a standby answers: the pipeline runs elsewhere.
pub const STANDBY: &str = "lockstep-standby";

/// An admin endpoint. Where the host's name has several addresses, as that of a group of standbys has, the one that runs the
/// pipeline answers.
pub struct Client<'a> {
    /// `http://127.0.0.1:9187`.
    pub url: &'a str,
    /// Its token, when it asks for one.
    pub token: Option<&'a str>,
}

/// The URL of an admin endpoint, as it is reached from this machine.
#[must_use]
pub fn url(admin: &Admin) -> String {
    let (host, port) = admin
        .listen
        .rsplit_once(':')
        .unwrap_or((&admin.listen, "9187"));
    let host = match host {
        "0.0.0.0" | "[::]" => "127.0.0.1",
        host => host,
    };
    format!("http://{host}:{port}")
}

impl Client<'_> {
    /// GET.
    ///
    /// # Errors
    /// When there is no answer, or one that is an error.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        let builder = || reqwest::Client::builder().timeout(TIMEOUT);
        self.ask(builder, |http| http.get(self.address(path))).await
    }

    /// GET of what a pipeline says of itself. A standby has no status; what it says instead, where nobody else answers, comes as it is, with `error` in it.
    ///
    /// # Errors
    /// When there is no answer, or one that is another error.
    pub async fn status(&self) -> Result<Value, Error> {
        let builder = || reqwest::Client::builder().timeout(TIMEOUT);
        let request = |http: &reqwest::Client| http.get(self.address("/api/status"));
        match self.ask_each(self.doors().await, builder, request).await? {
            Said::Answer(status) => Ok(status),
            Said::Standby(_, said) if said["lease"].is_object() => Ok(said),
            Said::Standby(error, _) | Said::Nothing(error) => Err(error),
        }
    }

    /// POST of JSON. Waits as long as the work takes.
    ///
    /// # Errors
    /// When there is no answer, or one that is an error.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        let builder = || reqwest::Client::builder().connect_timeout(TIMEOUT);
        self.ask(builder, |http| http.post(self.address(path)).json(body))
            .await
    }

    async fn ask(
        &self,
        builder: impl Fn() -> reqwest::ClientBuilder,
        request: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
    ) -> Result<Value, Error> {
        let doors = self.doors().await;
        self.ask_each(doors, builder, request).await?.answer()
    }

    /// Where to knock: each address of the host's name. One that the HTTP client is left to find where there is nothing to choose.
    async fn doors(&self) -> Vec<Option<(String, SocketAddr)>> {
        let url = reqwest::Url::parse(self.url).ok();
        let place = url.and_then(|url| {
            let port = url.port_or_known_default()?;
            Some((url.host_str()?.to_owned(), port))
        });
        let Some((host, port)) = place else {
            return vec![None];
        };
        let found = tokio::net::lookup_host((&*host, port)).await;
        let found: Vec<_> = found.into_iter().flatten().collect();
        match found.len() {
            0 | 1 => vec![None],
            _ => {
                let door = |address| Some((host.clone(), address));
                found.into_iter().map(door).collect()
            }
        }
    }

    /// The first answer of one that runs the pipeline, or why there is none. Nothing is sent twice: only who cannot be connected to, or is a standby, is passed over.
    async fn ask_each(
        &self,
        doors: Vec<Option<(String, SocketAddr)>>,
        builder: impl Fn() -> reqwest::ClientBuilder,
        request: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
    ) -> Result<Said, Error> {
        let (mut unreachable, mut standby) = (None, None);
        for door in doors {
            let builder = match door {
                Some((host, address)) => builder().resolve(&host, address),
                None => builder(),
            };
            let client = builder.build().map_err(|error| self.unreachable(error))?;
            match self.send(request(&client)).await? {
                said @ Said::Answer(_) => return Ok(said),
                said @ Said::Standby(..) => standby = Some(said),
                said @ Said::Nothing(_) => unreachable = Some(said),
            }
        }
        // Who cannot be reached is perhaps the one that runs it.
        unreachable
            .or(standby)
            .ok_or_else(|| Error::new(ErrorKind::Unavailable, format!("cannot ask {}", self.url)))
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url.trim_end_matches('/'))
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Said, Error> {
        let request = match self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Ok(Said::Nothing(self.unreachable(error))),
            Err(error) => return Err(self.unreachable(error)),
        };
        let url = self.url;
        let standby = response.headers().contains_key(STANDBY);
        match response.status().as_u16() {
            200..=299 => response
                .json()
                .await
                .map(Said::Answer)
                .map_err(|error| self.unreachable(error)),
            401 => Err(
                Error::new(ErrorKind::Authentication, format!("{url} asks for a token"))
                    .remedy("give it with --token or LOCKSTEP_ADMIN_TOKEN"),
            ),
            code => {
                let body = response.text().await.unwrap_or_default();
                let error = told(&body).unwrap_or_else(|| {
                    Error::new(ErrorKind::Unavailable, format!("{url} answered {code}"))
                        .remedy("is it lockstep that listens there?")
                });
                match standby {
                    true => {
                        let said = serde_json::from_str(&body).unwrap_or_default();
                        Ok(Said::Standby(error, said))
                    }
                    false => Err(error),
                }
            }
        }
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        Error::new(ErrorKind::Unavailable, format!("cannot ask {}", self.url))
            .source(error)
            .remedy("is the pipeline running, with an [admin] section? name its address with --url")
    }
}

/// What came of one request.
enum Said {
    Answer(Value),
    /// Of one that does not run the pipeline: as an error, and as it is.
    Standby(Error, Value),
    /// Nobody is there.
    Nothing(Error),
}

impl Said {
    fn answer(self) -> Result<Value, Error> {
        match self {
            Said::Answer(answer) => Ok(answer),
            Said::Standby(error, _) | Said::Nothing(error) => Err(error),
        }
    }
}

/// The error in an answer; its code says whose mistake it is.
fn told(body: &str) -> Option<Error> {
    let body: Value = serde_json::from_str(body).ok()?;
    let text = body["error"].as_str()?;
    let kind = match body["code"].as_str() {
        Some("LS002") => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    let text = text.strip_prefix(kind.code()).unwrap_or(text).trim_start();
    Some(match text.split_once(". Remedy: ") {
        Some((message, remedy)) => Error::new(kind, message).remedy(remedy),
        None => Error::new(kind, text),
    })
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    /// A name that has addresses in this test alone.
    const HOST: &str = "shop.lockstep.test";

    async fn serve(address: (&str, u16), router: Router) -> SocketAddr {
        let listener = TcpListener::bind(address).await.expect("an address");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn answers(status: StatusCode, standby: bool, body: Value) -> Router {
        Router::new().fallback(async move || {
            let answer = (status, axum::Json(body));
            let mut answer = axum::response::IntoResponse::into_response(answer);
            if standby {
                let yes = axum::http::HeaderValue::from_static("true");
                answer.headers_mut().insert(STANDBY, yes);
            }
            answer
        })
    }

    fn standby() -> Router {
        let body = json!({ "error": "LS003 it is a standby", "code": "LS003" });
        answers(StatusCode::SERVICE_UNAVAILABLE, true, body)
    }

    /// Asks each of these, behind one name.
    async fn asked(port: u16, addresses: &[SocketAddr]) -> Result<Value, Error> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://{HOST}:{port}");
        let client = Client {
            url: &url,
            token: None,
        };
        let doors = addresses.iter().map(|at| Some((HOST.to_owned(), *at)));
        let builder = || reqwest::Client::builder().no_proxy();
        let request = |http: &reqwest::Client| http.get(client.address("/api/status"));
        let said = client.ask_each(doors.collect(), builder, request).await;
        said?.answer()
    }

    #[tokio::test]
    async fn of_several_behind_one_name_the_one_that_runs_the_pipeline_answers() {
        let first = serve(("127.0.0.1", 0), standby()).await;
        let port = first.port();
        let right = answers(StatusCode::OK, false, json!({ "ready": true }));
        let second = serve(("127.0.0.2", port), right).await;
        let gone = SocketAddr::from(([127, 0, 0, 3], port));
        for doors in [
            [first, gone, second],
            [gone, first, second],
            [second, first, gone],
        ] {
            let answer = asked(port, &doors).await.expect("an answer");
            assert_eq!(answer["ready"], true);
        }
        let error = asked(port, &[first]).await.expect_err("a standby");
        assert_eq!(error.message(), "it is a standby");
        // Who cannot be reached may be the one.
        let error = asked(port, &[gone, first]).await.expect_err("nobody");
        assert!(error.message().starts_with("cannot ask"), "{error}");
    }

    /// `localhost` is two addresses on most machines.
    #[tokio::test]
    async fn a_name_of_which_one_address_answers_is_asked_by_its_name() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let right = answers(StatusCode::OK, false, json!({ "ready": true }));
        let port = serve(("127.0.0.1", 0), right).await.port();
        let client = Client {
            url: &format!("http://localhost:{port}"),
            token: None,
        };
        let answer = client.get("/api/status").await.expect("an answer");
        assert_eq!(answer["ready"], true);
    }

    #[tokio::test]
    async fn a_refusal_of_the_one_that_runs_it_is_the_answer() {
        let body = json!({ "error": "LS003 stopping", "code": "LS003" });
        let busy = answers(StatusCode::SERVICE_UNAVAILABLE, false, body);
        let first = serve(("127.0.0.1", 0), busy).await;
        let other = serve(("127.0.0.2", first.port()), standby()).await;
        let error = asked(first.port(), &[first, other]).await;
        assert_eq!(error.expect_err("busy").message(), "stopping");
    }
}
