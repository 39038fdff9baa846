//! How an attempt or a run ended, for programs and for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::proto::ProtoError;
use crate::session::Failure;

/// How it ended, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StatusKind {
    /// The guest runs at the destination; where its memory was checked, it is proven.
    Done,
    /// Nobody answered, or nobody came.
    Connect,
    /// The peer does not take this guest, or speaks another protocol.
    Refused,
    /// The peer is busy with another migration.
    Busy,
    /// The policy judged that going on is of no use.
    GaveUp,
    /// The link broke or stalled, or the peer fell silent.
    LinkLost,
    /// The user, or the other side's, called it off.
    Cancelled,
    /// This host, its guest or its settings, or the peer, could not do what it takes.
    Failed,
    /// The guest runs at the destination, and its memory is wrong.
    MemoryWrong,
    /// The guest runs at the destination, and nothing was proven about it.
    Inconclusive,
    /// The guest is stopped here and may run at the destination.
    Unresolved,
}

/// How far an attempt was when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Connecting, and the destination making its shadow.
    Setup,
    /// Pages on their way while the guest runs.
    Copying,
    /// The guest stands still; nothing is decided yet.
    Stun,
    /// The decision is made, the destination was told.
    Handover,
    /// The guest runs at the destination.
    Running,
}

/// How an attempt or a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// In a word.
    pub kind: StatusKind,
    /// How far it was.
    pub phase: Phase,
    /// Whether another attempt with the same settings may do better.
    pub retryable: bool,
    /// For people.
    pub text: String,
}

impl Status {
    /// Of an attempt that has begun.
    pub(crate) fn under_way() -> Self {
        let text = "under way".to_owned();
        Self { kind: StatusKind::Failed, phase: Phase::Setup, retryable: true, text }
    }

    /// Of an attempt that brought the guest across.
    pub fn done() -> Self {
        let (kind, phase) = (StatusKind::Done, Phase::Running);
        Self { kind, phase, retryable: false, text: "done".to_owned() }
    }

    /// Of a guest that runs at the destination, of whose memory this was shown for these reasons.
    #[cfg(feature = "builtin")]
    pub fn of_memory(memory: verifier::verdict::Verdict, reasons: String) -> Self {
        use verifier::verdict::Verdict;
        let kind = match memory {
            Verdict::Proven => return Self::done(),
            Verdict::Inconclusive => StatusKind::Inconclusive,
            Verdict::Wrong => StatusKind::MemoryWrong,
        };
        Self { kind, phase: Phase::Running, retryable: false, text: reasons }
    }

    /// Of an attempt that ended so in this phase.
    pub fn of(error: &Error, phase: Phase) -> Self {
        let retryable = !matches!(
            error,
            Error::Cancelled
                | Error::GaveUp(_)
                | Error::Settings(_)
                | Error::Insecure(_)
                | Error::StateDirectory { .. }
                | Error::Unresolved { .. }
        );
        Self { kind: kind(error), phase, retryable, text: error.to_string() }
    }
}

fn kind(error: &Error) -> StatusKind {
    match error {
        Error::Connect { .. } | Error::Listen { .. } | Error::NobodyCame(_) => StatusKind::Connect,
        Error::Link { .. } | Error::PeerSilent(..) => StatusKind::LinkLost,
        Error::Protocol(error) => of_protocol(error),
        Error::GaveUp(_) => StatusKind::GaveUp,
        Error::Cancelled => StatusKind::Cancelled,
        Error::Unresolved { .. } => StatusKind::Unresolved,
        Error::Session(failure) => match failure {
            Failure::Cancelled | Failure::Called(_) | Failure::Superseded => StatusKind::Cancelled,
            Failure::Unreachable(_) => StatusKind::Connect,
            Failure::LinkLost(_) | Failure::Silent(_) | Failure::Stuck(..) => StatusKind::LinkLost,
            Failure::Refused(_) => StatusKind::Refused,
            Failure::Breach(error) => of_protocol(error),
            Failure::Local(_) | Failure::Peer(_) | Failure::Record(_) => StatusKind::Failed,
        },
        Error::Damaged { .. }
        | Error::Peer(_)
        | Error::Guest(_)
        | Error::Settings(_)
        | Error::Tls(_)
        | Error::Insecure(_)
        | Error::Record { .. }
        | Error::StateDirectory { .. } => StatusKind::Failed,
    }
}

fn of_protocol(error: &ProtoError) -> StatusKind {
    match error {
        ProtoError::NotOurs
        | ProtoError::WantsTls
        | ProtoError::Version { .. }
        | ProtoError::Refused(_) => StatusKind::Refused,
        ProtoError::Busy(_) => StatusKind::Busy,
        ProtoError::Damaged
        | ProtoError::Kind(_)
        | ProtoError::Length { .. }
        | ProtoError::Migration
        | ProtoError::Unexpected { .. } => StatusKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_ended_or_nobody_can_end_is_not_tried_again() {
        let of = |error: &Error| {
            let status = Status::of(error, Phase::Copying);
            (status.kind, status.retryable)
        };
        assert_eq!(of(&Error::Cancelled), (StatusKind::Cancelled, false));
        assert_eq!(of(&Error::Unresolved { id: String::new() }), (StatusKind::Unresolved, false));
        let busy = ProtoError::Busy("another".to_owned());
        assert_eq!(of(&busy.into()), (StatusKind::Busy, true));
        let silent = Failure::Silent(std::time::Duration::ZERO);
        assert_eq!(of(&Error::Session(silent)), (StatusKind::LinkLost, true));
    }

    #[test]
    fn a_status_is_words_in_json_and_reads_back() {
        let status = Status::of(&Error::Cancelled, Phase::Stun);
        let text = serde_json::to_string(&status).unwrap();
        let wanted = r#"{"kind":"cancelled","phase":"stun","retryable":false,"text":"cancelled"}"#;
        assert_eq!(text, wanted);
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    }
}
