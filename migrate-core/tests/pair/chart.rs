//! A history as a message sequence chart: two lifelines, arrows where messages arrive, and half of
//! one where a message never does. Time is between the lifelines, what an end does is beside its own.

use migrate_core::proto::message::{Message, Standing};
use migrate_core::session::Word;

use crate::action::Action;
use crate::explorer::chart;
use crate::world::{Left, Progress, RULES, Rules, Task, World};

/// Whose lifeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
    Both,
}

/// Lines of a chart.
pub type Chart = Vec<String>;

const WIDTH: usize = 42;
const GAP: usize = 22;

/// What stands above a chart.
pub fn head() -> String {
    format!("{0:>WIDTH$} |{1:GAP$}| {2}", "source", "", "destination")
}

impl World {
    fn line(&mut self, line: impl FnOnce() -> String) {
        if let Some(chart) = &mut self.chart.0 {
            chart.push(line().trim_end().to_owned());
        }
    }

    pub fn note(&mut self, side: Side, text: &str) {
        self.line(|| match side {
            Side::Source => format!("{text:>WIDTH$} |{:GAP$}|", ""),
            Side::Destination => format!("{0:WIDTH$} |{0:GAP$}| {text}", ""),
            Side::Both => format!("{:WIDTH$} |{text:.^GAP$}|", ""),
        });
    }

    pub fn note_connection(&mut self, what: &str, at: u8) {
        let serial = self.connections[usize::from(at)].serial.0;
        let text = format!("c{serial} {what}");
        self.line(|| format!("{:WIDTH$} |{text:^GAP$}|", ""));
    }

    pub fn note_loss(&mut self, side: Side, at: u8) {
        let serial = self.connections[usize::from(at)].serial.0;
        self.note(side, &format!("loses c{serial}"));
    }

    pub fn note_record(&mut self, side: Side, word: &str, progress: Progress) {
        match progress {
            Progress::Failed => self.note(side, &format!("record: {word}, NOT SYNCED")),
            Progress::Ordered | Progress::Written => self.note(side, &format!("record: {word}")),
        }
    }

    pub fn note_restart(&mut self, side: Side, word: &str) {
        self.note(side, &format!("a new engine finds: {word}"));
    }

    pub fn note_word(&mut self, side: Side, word: Word) {
        self.note(side, &format!("OPERATOR {}", spoken(word)));
    }

    /// A message arrives at that side.
    pub fn arrived(&mut self, side: Side, serial: u32, message: &Message) {
        if matches!(message, Message::Alive(_)) {
            return;
        }
        self.line(|| {
            let text = format!(" {} c{serial} ", name(message));
            match side {
                Side::Source => format!("{:WIDTH$} |<{text:-^w$}|", "", w = GAP - 1),
                _ => format!("{:WIDTH$} |{text:-^w$}>|", "", w = GAP - 1),
            }
        });
    }

    /// Messages that are still on their way on a connection never come to that side.
    pub fn never_arrive(&mut self, side: Side, at: usize) {
        if self.chart.0.is_none() {
            return;
        }
        let connection = &self.connections[at];
        let (queue, serial) = match side {
            Side::Source => (&connection.to_source, connection.serial.0),
            _ => (&connection.to_there, connection.serial.0),
        };
        let texts: Vec<_> = queue.iter().map(|m| format!(" {} c{serial} ", name(m))).collect();
        for text in texts {
            self.line(|| match side {
                Side::Source => format!("{:WIDTH$} |  x{text:-^w$}|", "", w = GAP - 3),
                _ => format!("{:WIDTH$} |{text:-^w$}x  |", "", w = GAP - 3),
            });
        }
    }
}

/// What an operator says.
pub fn spoken(word: Word) -> &'static str {
    match word {
        Word::Cancel => "cancel",
        Word::Interrupt => "Ctrl-C",
        Word::SourceRuns { runs_nowhere_else: false } => "--source-runs",
        Word::SourceRuns { runs_nowhere_else: true } => "--source-runs --runs-nowhere-else",
        Word::DestinationRuns { source_is_gone: false } => "--destination-runs",
        Word::DestinationRuns { source_is_gone: true } => "--destination-runs --source-is-gone",
        Word::GiveUp => "--give-up",
    }
}

/// A message's name in a chart.
pub fn name(message: &Message) -> String {
    match message {
        Message::State { stun, .. } => format!("State {}", stun.0),
        Message::Ready { stun, .. } => format!("Ready {}", stun.0),
        Message::Run { stun } => format!("Run {}", stun.0),
        Message::Again { stun } => format!("Again {}", stun.0),
        Message::Late { stun } => format!("Late {}", stun.0),
        Message::Standing(Standing::Prepared { stun }) => format!("prepared {}", stun.0),
        Message::Standing(Standing::GoneOn) => "gone on".to_owned(),
        Message::Standing(Standing::Ended) => "ended".to_owned(),
        Message::Standing(Standing::MayHaveRun) => "may have run".to_owned(),
        Message::Standing(Standing::Unknown) => "unknown".to_owned(),
        other => format!("{:?}", other.kind()),
    }
}

/// A run that goes well: the first stun is called off, and the connection breaks under the second
/// Run, which never arrives.
#[test]
fn of_a_good_run() {
    let left = Left { agains: 1, cuts: 1, ..crate::world::NONE };
    let rules = Rules { left, ..RULES };
    let (mut world, mut taken, mut actions) = (World::new(rules), Vec::new(), Vec::new());
    loop {
        world.actions(&mut actions);
        let said_run = world.connections.iter().position(|connection| {
            connection.to_there.iter().any(|message| matches!(message, Message::Run { .. }))
        });
        let deciding = world.source.task == Task::Deciding;
        let lost = |action: &&Action| {
            matches!(action, Action::SourceNotices(_) | Action::DestinationNotices(_))
        };
        let action = match said_run {
            _ if deciding && world.left.agains > 0 => Some(Action::GoBack),
            Some(at) if world.left.cuts > 0 => Some(Action::Break(at as u8)),
            _ => {
                let late = matches!(taken.last(), Some(Action::Break(_)));
                let other = |action: &&Action| {
                    !(action.is_fault()
                        || matches!(action, Action::Time | Action::SourceTires(_) | Action::GoBack))
                };
                let next = actions.iter().find(lost).or_else(|| actions.iter().find(other));
                if late { Some(Action::Time) } else { next.copied() }
            }
        };
        let Some(action) = action else { break };
        world.act(action);
        taken.push(action);
    }
    assert!(world.violation.is_none() && world.there[0].runs());
    crate::tables::compare("migrate-core/tests/pair/good_run.txt", &chart(rules, &taken));
}
