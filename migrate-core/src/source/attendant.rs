//! What an operator asks and tells a source that migrates.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::shell::Attempt;
use crate::conductor::{Handle, ProgressGauge};
use crate::link::pacer::Pacer;
use crate::operator::{Attendant, Setting, Status};
use crate::session::source::{Source, State};
use crate::session::{Reply, Word};

/// A source, as its operator sees it.
pub(super) struct SourceAttendant {
    session: Handle<Source>,
    gauge: Arc<ProgressGauge>,
    pacer: Arc<Pacer>,
    goal_us: Arc<AtomicU64>,
    migration: String,
    peer: String,
    memory_pages: u64,
    policy: &'static str,
}

impl Attendant for SourceAttendant {
    fn status(&self) -> Status {
        let (state, connected) = self.session.look(|session| {
            let state = match session.state() {
                State::Committed if !session.is_connected() => "Unresolved".to_owned(),
                State::Resumed(_) => "Resumed".to_owned(),
                State::Uncommitting { .. } => "Uncommitting".to_owned(),
                State::Released(_) | State::Releasing(_) => "Released".to_owned(),
                state => format!("{state:?}"),
            };
            (state, session.is_connected())
        });
        let progress = self.gauge.read();
        Status {
            migration: self.migration.clone(),
            role: "source".to_owned(),
            state,
            connected,
            peer: self.peer.clone(),
            memory_pages: self.memory_pages,
            doing: progress.activity.to_string(),
            done: progress.done,
            total: progress.total,
        }
    }

    fn word(&self, word: Word) -> Reply {
        self.session.word(word)
    }

    fn set(&self, setting: Setting) -> Reply {
        match setting {
            Setting::Bandwidth(bandwidth) => {
                self.pacer.set(bandwidth);
                let text = bandwidth.map_or("as fast as the link takes it".to_owned(), |rate| {
                    format!("at most {rate:.0} bytes per second")
                });
                Reply::taken(format!("sending {text} from now on"))
            }
            Setting::Downtime(goal) => {
                let most = Duration::from_micros(u64::MAX);
                self.goal_us.store(goal.min(most).as_micros() as u64, Ordering::Relaxed);
                Reply::taken(format!("the stun may take {goal:?} from now on"))
            }
        }
    }

    fn switch(&self) -> Reply {
        Reply::not_taken(format!(
            "the policy {} moves all memory before the guest runs there, and has nothing to switch",
            self.policy
        ))
    }
}

impl Attempt<'_> {
    pub(super) fn attendant(&self, session: Handle<Source>) -> SourceAttendant {
        SourceAttendant {
            session,
            gauge: self.gauge.clone(),
            pacer: self.pacer.clone(),
            goal_us: self.goal_us.clone(),
            migration: self.id.to_string(),
            peer: self.settings.peer.to_string(),
            memory_pages: self.report.memory_pages,
            policy: self.settings.policy.name(),
        }
    }
}
