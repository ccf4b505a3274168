//! What an answer means.

use std::time::{Duration, SystemTime};

use lockstep_core::config::Secret;
use lockstep_core::refusal::reason;
use lockstep_core::{Error, ErrorKind};

/// The longest that a receiver can tell us to wait, so that a mistake of its clock is not one of ours for ever.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// An answer, as far as it is looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<String>,
    pub(crate) location: Option<String>,
    /// The beginning of the body.
    pub(crate) text: String,
}

/// What is to be done about an answer, or about there being none.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The receiver has it.
    Taken,
    /// It may take it later: not before so long, where it said so.
    Again(Error, Option<Duration>),
    /// It will not.
    Failed(Error),
}

impl Answer {
    /// `what` names the request. With a token, 412 says that somebody has come with a greater one.
    pub(crate) fn judge(&self, what: &str, has_token: bool) -> Verdict {
        let error = |kind, remedy: &str| {
            let error = Error::new(kind, format!("{what} was answered with {}", self.status));
            let error = match self.text.is_empty() {
                true => error,
                false => error.source(self.text.clone()),
            };
            error.remedy(remedy)
        };
        let refused = |reason, remedy: &str| {
            Verdict::Failed(error(ErrorKind::Refused, remedy).because(reason))
        };
        match self.status {
            200..=299 => Verdict::Taken,
            300..=399 => {
                let to = self.location.as_deref().map_or_else(|| "nowhere".to_owned(), shown);
                let what = format!("{what} was answered with {}, which leads to {to}", self.status);
                let remedy = "redirects are not followed: write the address where it ends as `url`";
                Verdict::Failed(Error::new(ErrorKind::Setup, what).remedy(remedy))
            }
            401 => Verdict::Failed(error(
                ErrorKind::Authentication,
                "set `user` and `password`, `bearer`, `headers` or `secrets` to what the receiver accepts",
            )),
            403 => Verdict::Failed(error(
                ErrorKind::Permission,
                "allow what lockstep says it is to post there",
            )),
            408 | 425 | 500..=599 => {
                let error = error(ErrorKind::Unavailable, "see the receiver's log");
                Verdict::Again(error, self.wait())
            }
            429 => {
                let error = error(
                    ErrorKind::Overloaded,
                    "raise the receiver's limit, or lower `concurrency`",
                );
                Verdict::Again(error, self.wait())
            }
            410 => refused(
                reason::REFUSED,
                "the receiver says that the address is gone for good: change `url`, or remove the sink",
            ),
            412 if has_token => Verdict::Failed(
                error(
                    ErrorKind::Busy,
                    "another process writes there by a newer lease: let it, and see why this one still runs",
                )
                .because(reason::FENCED),
            ),
            413 => refused(
                reason::TOO_LARGE,
                "raise the receiver's limit, or lower `batch.bytes`",
            ),
            400..=499 => refused(reason::REFUSED, "see the receiver's log for what it does not take"),
            _ => Verdict::Failed(error(
                ErrorKind::Protocol,
                "see what stands at `url`: it answers with no status of HTTP",
            )),
        }
    }

    /// `Retry-After`, in seconds or as a date.
    fn wait(&self) -> Option<Duration> {
        let text = self.retry_after.as_deref()?.trim();
        let wait = match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let date = httpdate::parse_http_date(text).ok()?;
                date.duration_since(SystemTime::now()).unwrap_or_default()
            }
        };
        Some(wait.min(LONGEST_WAIT))
    }
}

/// Where a redirect leads, without a login or a query, which may be secret.
fn shown(location: &str) -> String {
    match location.contains("://") {
        true => Secret::new(location).redacted_url(),
        false => location
            .split(['?', '#'])
            .next()
            .unwrap_or_default()
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        Answer {
            status,
            ..Answer::default()
        }
    }

    #[test]
    fn each_status_has_its_meaning() {
        for status in [200, 201, 202, 204, 299] {
            assert!(matches!(answer(status).judge("x", true), Verdict::Taken));
        }
        for (status, kind) in [
            (408, ErrorKind::Unavailable),
            (425, ErrorKind::Unavailable),
            (429, ErrorKind::Overloaded),
            (500, ErrorKind::Unavailable),
            (503, ErrorKind::Unavailable),
            (599, ErrorKind::Unavailable),
        ] {
            match answer(status).judge("x", true) {
                Verdict::Again(error, None) => assert_eq!(error.kind(), kind, "{status}"),
                other => panic!("{status}: {other:?}"),
            }
        }
        for (status, kind) in [
            (101, ErrorKind::Protocol),
            (301, ErrorKind::Setup),
            (304, ErrorKind::Setup),
            (400, ErrorKind::Refused),
            (401, ErrorKind::Authentication),
            (403, ErrorKind::Permission),
            (404, ErrorKind::Refused),
            (410, ErrorKind::Refused),
            (412, ErrorKind::Busy),
            (413, ErrorKind::Refused),
            (422, ErrorKind::Refused),
            (499, ErrorKind::Refused),
            (600, ErrorKind::Protocol),
            (999, ErrorKind::Protocol),
        ] {
            match answer(status).judge("x", true) {
                Verdict::Failed(error) => {
                    assert_eq!(error.kind(), kind, "{status}");
                    assert!(error.remedy_text().is_some(), "{status}");
                }
                other => panic!("{status}: {other:?}"),
            }
        }
        let without = answer(412).judge("x", false);
        assert!(matches!(without, Verdict::Failed(error) if error.kind() == ErrorKind::Refused));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_an_end() {
        let wait = |text: &str| {
            let answer = Answer {
                retry_after: Some(text.to_owned()),
                ..answer(503)
            };
            answer.wait()
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("999999999"), Some(LONGEST_WAIT));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let ahead = SystemTime::now() + Duration::from_secs(100);
        let date = wait(&httpdate::fmt_http_date(ahead)).expect("a date");
        assert!((98..=100).contains(&date.as_secs()), "{date:?}");
    }

    #[test]
    fn a_redirect_says_where_it_leads_and_no_secret() {
        for (location, to) in [
            ("https://u:hunter2@other/x?key=hunter2", "https://other/x"),
            ("/x?key=hunter2", "/x"),
        ] {
            let answer = Answer {
                location: Some(location.to_owned()),
                ..answer(308)
            };
            let Verdict::Failed(error) = answer.judge("POST https://h/", false) else {
                panic!("followed");
            };
            let text = error.to_string();
            assert!(text.contains(&format!("leads to {to}.")), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
