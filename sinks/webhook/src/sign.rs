//! Signatures as Standard Webhooks has them: HMAC-SHA256 of `id.timestamp.body`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use lockstep_core::Result;
use lockstep_core::config::Secret;
use sha2::Sha256;

use crate::config::wrong;

/// What a secret begins with.
const PREFIX: &str = "whsec_";

/// Signs with each of several secrets.
pub(crate) struct Signer(Vec<Hmac<Sha256>>);

impl Signer {
    /// # Errors
    /// Of kind `Config`, without a part of the secret.
    pub(crate) fn new(secrets: &[Secret]) -> Result<Self> {
        let hmacs = secrets.iter().map(|secret| {
            let bad = |what: &str| {
                wrong(format!("one of `secrets` {what}"))
                    .remedy("make one: echo whsec_$(head -c 32 /dev/urandom | base64)")
            };
            let text = secret.reveal().strip_prefix(PREFIX);
            let text = text.ok_or_else(|| bad("does not begin with `whsec_`"))?;
            let key = STANDARD
                .decode(text)
                .map_err(|_| bad("is no base64 behind `whsec_`"))?;
            if !(24..=64).contains(&key.len()) {
                return Err(bad(&format!(
                    "has {} bytes; there must be 24 to 64",
                    key.len()
                )));
            }
            // HMAC takes keys of any length.
            Hmac::new_from_slice(&key).map_err(|error| bad("is no key").source(error))
        });
        hmacs.collect::<Result<_>>().map(Signer)
    }

    /// The value of `webhook-signature`; `None` without a secret.
    pub(crate) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<String> {
        let signature = |hmac: &Hmac<Sha256>| {
            let hmac = hmac.clone().chain_update(id).chain_update(".");
            let hmac = hmac.chain_update(timestamp).chain_update(".");
            let digest = hmac.chain_update(body).finalize().into_bytes();
            format!("v1,{}", STANDARD.encode(digest))
        };
        let all: Vec<String> = self.0.iter().map(signature).collect();
        (!all.is_empty()).then(|| all.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries; and that a second secret adds a second signature.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let known = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let other = Secret::new("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
        let sign = |secrets: &[Secret]| {
            let signer = Signer::new(secrets).expect("valid");
            let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
            signer.sign(id, "1614265330", br#"{"test": 2432232314}"#)
        };
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(
            sign(std::slice::from_ref(&known)).as_deref(),
            Some(expected)
        );
        let both = sign(&[other, known]).expect("signed");
        assert!(
            both.starts_with("v1,") && both.ends_with(&format!(" {expected}")),
            "{both}"
        );
        assert_eq!(sign(&[]), None);
    }
}
