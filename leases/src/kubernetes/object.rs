//! The object of a lease. What is not ours in it, as labels, stays as it was read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockstep_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use crate::provider::Token;

/// What the second of an object's making counts in a token. Both together stay below 2⁵³ for centuries.
const TRANSITIONS: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub(super) struct Object(pub(super) Value);

impl Object {
    /// One that is taken as it is made.
    pub(super) fn new(name: &str, holder: &str, ttl: Duration) -> Self {
        let now = micro_time(SystemTime::now());
        Object(json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name },
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": ttl.as_secs(),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 1,
            },
        }))
    }

    /// Changes with each write.
    pub(super) fn version(&self) -> &str {
        self.0["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default()
    }

    /// Empty when nobody has it.
    pub(super) fn holder(&self) -> &str {
        self.0["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
    }

    /// How long its holder wants to be waited for.
    pub(super) fn lasts(&self) -> Option<Duration> {
        self.0["spec"]["leaseDurationSeconds"]
            .as_u64()
            .map(Duration::from_secs)
    }

    pub(super) fn transitions(&self) -> u64 {
        self.0["spec"]["leaseTransitions"].as_u64().unwrap_or(0)
    }

    /// # Errors
    /// Of kind `Protocol` when the server has not written down when it was made.
    pub(super) fn token(&self) -> Result<Token> {
        let made = self.0["metadata"]["creationTimestamp"].as_str();
        let second = made.and_then(second_of);
        let second = second.ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                "a lease has no creationTimestamp that can be read",
            )
        })?;
        Ok(Token(second * TRANSITIONS + self.transitions()))
    }

    /// # Errors
    /// When it was taken as often as can be counted.
    pub(super) fn take(&mut self, holder: &str, ttl: Duration) -> Result<()> {
        let transitions = self.transitions() + 1;
        // 32 bits with a sign, as Kubernetes has it.
        if transitions > i32::MAX as u64 {
            return Err(Error::new(
                ErrorKind::Setup,
                "leaseTransitions cannot count any further",
            )
            .remedy("stop all who use the lease, delete it, and start them again"));
        }
        let now = micro_time(SystemTime::now());
        if !self.0["spec"].is_object() {
            self.0["spec"] = json!({});
        }
        let spec = &mut self.0["spec"];
        spec["holderIdentity"] = holder.into();
        spec["leaseDurationSeconds"] = ttl.as_secs().into();
        spec["acquireTime"] = now.as_str().into();
        spec["renewTime"] = now.as_str().into();
        spec["leaseTransitions"] = transitions.into();
        Ok(())
    }

    pub(super) fn renew(&mut self) {
        self.0["spec"]["renewTime"] = micro_time(SystemTime::now()).into();
    }

    pub(super) fn release(&mut self) {
        self.0["spec"]["holderIdentity"] = "".into();
    }
}

/// `2026-01-31T23:59:59.000001Z`, as Kubernetes writes a MicroTime.
fn micro_time(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date_of(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{:06}Z",
        second % 60,
        since.subsec_micros()
    )
}

/// The second since 1970 that `2026-01-31T23:59:59Z` names.
fn second_of(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let form = text.len() == 20 && text.ends_with('Z') && text.get(10..11) == Some("T");
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let valid = form && year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    valid.then_some(())?;
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    Some(days_to(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days from 1970 to a date, after Hinnant: years that begin in March have their leap day at the end.
fn days_to(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let since_march = (month + 9) % 12;
    let day_of_year = (153 * since_march + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let since_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * since_march + 2) / 5 + 1;
    let month = if since_march < 10 {
        since_march + 3
    } else {
        since_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(second_of(text), Some(second), "{text}");
            let time = UNIX_EPOCH + Duration::from_secs(second) + Duration::from_micros(7);
            assert_eq!(micro_time(time), text.replace('Z', ".000007Z"));
        }
        for bad in [
            "",
            "2026-12-31",
            "2026-13-01T00:00:00Z",
            "2026-12-31T23:59:59+01",
        ] {
            assert_eq!(second_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_object_that_is_made_again_goes_on_above_the_one_before() {
        let object = |made: &str, transitions: u64| {
            let mut object = Object::new("a", "me", Duration::from_secs(10));
            object.0["metadata"]["creationTimestamp"] = made.into();
            object.0["spec"]["leaseTransitions"] = transitions.into();
            object.token().expect("made")
        };
        let often = object("2026-12-31T23:59:58Z", 1_000_000);
        assert!(often < object("2026-12-31T23:59:59Z", 1));
        assert!(often < object("2026-12-31T23:59:58Z", 1_000_001));
    }

    #[test]
    fn what_is_not_ours_stays() {
        let mut object = Object(json!({
            "metadata": { "name": "a", "labels": { "x": "y" }, "resourceVersion": "7" },
            "spec": { "leaseTransitions": 3, "strategy": "OldestEmulationVersion" },
        }));
        object.take("me", Duration::from_secs(10)).expect("taken");
        assert_eq!((object.holder(), object.transitions()), ("me", 4));
        assert_eq!(object.lasts(), Some(Duration::from_secs(10)));
        assert_eq!(object.version(), "7");
        assert_eq!(object.0["metadata"]["labels"]["x"], "y");
        assert_eq!(object.0["spec"]["strategy"], "OldestEmulationVersion");
        object.release();
        assert_eq!((object.holder(), object.transitions()), ("", 4));
    }
}
