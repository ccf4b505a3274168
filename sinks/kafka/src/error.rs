//! From librdkafka's codes to the house kinds.

use lockstep_core::refusal::{Refusal, reason};
use lockstep_core::{Error, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// An error that can be told several times: to each batch that it took down, and to writes that come later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) message: String,
    pub(crate) remedy: Option<String>,
    pub(crate) reason: Option<&'static str>,
    /// The changes that are refused, or suspected to be.
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) suspects: bool,
}

impl Failure {
    pub(crate) fn new(
        kind: ErrorKind,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Failure {
            kind,
            message: message.into(),
            remedy: Some(remedy.into()),
            reason: None,
            refusals: Vec::new(),
            suspects: false,
        }
    }

    /// `what` failed with `error`; kind and remedy follow from its code.
    pub(crate) fn of(what: impl std::fmt::Display, error: &KafkaError) -> Self {
        let Some(code) = error.rdkafka_error_code() else {
            return Failure {
                kind: kind_without_code(error),
                message: format!("{what}: {error}"),
                remedy: None,
                reason: None,
                refusals: Vec::new(),
                suspects: false,
            };
        };
        // The text of a transaction error says more than its code.
        let detail = match error {
            KafkaError::Transaction(inner) => inner.string(),
            _ => code.to_string(),
        };
        Failure::of_code(what, code, &detail)
    }

    /// As [`Failure::of`], for places that have a code and a text.
    pub(crate) fn of_code(what: impl std::fmt::Display, code: Code, detail: &str) -> Self {
        let kind = kind_of(code);
        Failure {
            kind,
            message: format!("{what}: {detail}"),
            remedy: remedy_of(code, kind).map(str::to_owned),
            reason: reason_of(code),
            refusals: Vec::new(),
            suspects: false,
        }
    }

    /// The failure as the house error.
    pub(crate) fn error(&self) -> Error {
        let mut error = Error::new(self.kind, self.message.clone());
        if let Some(remedy) = &self.remedy {
            error = error.remedy(remedy.clone());
        }
        if let Some(reason) = self.reason {
            error = error.because(reason);
        }
        match (self.refusals.is_empty(), self.suspects) {
            (true, _) => error,
            (false, true) => error.suspecting(self.refusals.clone()),
            (false, false) => error.refusing(self.refusals.clone()),
        }
    }
}

impl From<&Error> for Failure {
    /// Keeps kind, places, causes, remedy and refusals; the places and causes become part of the sentence.
    fn from(error: &Error) -> Self {
        let remedy = error.remedy_text().map(str::to_owned);
        let shown = error.to_string();
        let code = error.kind().code();
        let mut message = shown.strip_prefix(code).unwrap_or(&shown).trim_start();
        if let Some(remedy) = &remedy {
            let end = message.len().saturating_sub(remedy.len());
            let stripped = message
                .get(..end)
                .and_then(|text| text.strip_suffix(". Remedy: "));
            message = stripped.unwrap_or(message);
        }
        Failure {
            kind: error.kind(),
            message: message.to_owned(),
            remedy,
            reason: error.reason(),
            refusals: error.refusals().to_vec(),
            suspects: error.is_suspicion(),
        }
    }
}

fn kind_without_code(error: &KafkaError) -> ErrorKind {
    match error {
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => ErrorKind::Config,
        KafkaError::AdminOp(code) => kind_of(*code),
        KafkaError::Nul(_) => ErrorKind::Config,
        _ => ErrorKind::Unavailable,
    }
}

/// What helps when nobody answers.
pub(crate) const UNREACHABLE: &str = "check that the brokers run, that `brokers` names addresses reachable from here, and that `security.protocol` in `properties` is the listener's";

/// Whether a code says why there is silence. Others only say that there is.
pub(crate) fn explains(code: Code) -> bool {
    kind_of(code) != ErrorKind::Unavailable || code == Code::SSL
}

/// What kind of failure a code is. Codes that are not listed are troubles of brokers and networks, which pass.
pub(crate) fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::InvalidRecord => ErrorKind::Refused,
        // Records carry the time they are made at: a clock that is wrong is nothing that is wrong with a row.
        Code::InvalidTimestamp => ErrorKind::Unavailable,
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::DelegationTokenAuthorizationFailed => ErrorKind::Permission,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::IllegalSASLState
        | Code::UnsupportedSASLMechanism
        | Code::UnacceptableCredential
        | Code::DelegationTokenExpired => ErrorKind::Authentication,
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::PolicyViolation
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::InvalidRequiredAcks
        | Code::InvalidTransactionTimeout
        | Code::SecurityDisabled => ErrorKind::Setup,
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => ErrorKind::Busy,
        Code::QueueFull | Code::ThrottlingQuotaExceeded => ErrorKind::Overloaded,
        Code::InvalidArgument => ErrorKind::Config,
        // The library's calls were made in the wrong order.
        Code::State | Code::NotConfigured => ErrorKind::Protocol,
        _ => ErrorKind::Unavailable,
    }
}

fn reason_of(code: Code) -> Option<&'static str> {
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            Some(reason::TOO_LARGE)
        }
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Some(reason::FENCED),
        _ => None,
    }
}

fn remedy_of(code: Code, kind: ErrorKind) -> Option<&'static str> {
    Some(match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            "raise `max.message.bytes` of the topic (kafka-configs --alter --entity-type topics) and `\"message.max.bytes\"` in `properties` of this sink, or drop the large column with a `project` transform"
        }
        Code::InvalidTimestamp => {
            "set the clock of this machine or of the broker's; or raise `message.timestamp.after.max.ms` of the topic; or turn the validation of schemas off, where the broker has one: these records carry none"
        }
        Code::TransactionalIdAuthorizationFailed => {
            "allow Write and Describe on the transactional id (kafka-acls --add --transactional-id … --operation Write --operation Describe), or set `exactly_once = false`"
        }
        Code::InvalidTransactionTimeout => {
            "lower `\"transaction.timeout.ms\"` in `properties`, or raise `transaction.max.timeout.ms` of the brokers"
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            "create the topic (kafka-topics --create), or allow this user to create it"
        }
        Code::InvalidReplicationFactor => {
            "set `replication` of this sink to at most the number of brokers"
        }
        Code::SSL => {
            "check that `ssl.ca.location` in `properties` has the authority of the brokers' certificates, which name the addresses in `brokers`; that the brokers trust `ssl.certificate.location`; and that `security.protocol` is the listener's"
        }
        _ => match kind {
            ErrorKind::Busy => {
                "another lockstep with the same pipeline and sink name is running: stop it, or give one of them another name"
            }
            ErrorKind::Permission => {
                "allow the user Write, Describe and Create on the topics (kafka-acls --add --topic … --operation Write …)"
            }
            ErrorKind::Authentication => {
                "check `security.protocol`, `sasl.mechanism`, `sasl.username` and `sasl.password` in `properties`"
            }
            ErrorKind::Unavailable => UNREACHABLE,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::error::Policy;

    #[test]
    fn codes_map_to_kinds() {
        for (code, kind) in [
            (Code::MessageSizeTooLarge, ErrorKind::Refused),
            (Code::TopicAuthorizationFailed, ErrorKind::Permission),
            (Code::UnknownTopicOrPartition, ErrorKind::Setup),
            (Code::BrokerTransportFailure, ErrorKind::Unavailable),
            (Code::MessageTimedOut, ErrorKind::Unavailable),
            (Code::InvalidTimestamp, ErrorKind::Unavailable),
            (Code::Fenced, ErrorKind::Busy),
            (Code::SaslAuthenticationFailed, ErrorKind::Authentication),
        ] {
            assert_eq!(kind_of(code), kind, "{code:?}");
        }
        assert_eq!(kind_of(Code::MessageTimedOut).policy(), Policy::Retry);
    }

    #[test]
    fn a_house_error_survives_the_copy() {
        let error = Error::new(ErrorKind::Refused, "column `a` holds no number")
            .remedy("mend it")
            .at("table public.t");
        let copy = Failure::from(&error);
        assert_eq!(copy.message, "table public.t: column `a` holds no number");
        assert_eq!(copy.error().to_string(), error.to_string());
    }
}
