//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use migrate_core::memory::PAGE_BYTES;
use migrate_core::report::Phase;
use migrate_core::trial::{self, Step};
use migrate_core::{destination, source};
use workload::units::{Bytes, Rate};
use workload::{interrupt, say};

use crate::show::Detail;

/// Time between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// How far a guest came that is on its way here.
#[derive(Clone, Debug)]
pub(crate) struct Arriving {
    pub(crate) peer: Option<String>,
    pub(crate) migration: Option<String>,
    pub(crate) phase: Phase,
}

/// Says on standard error what goes on, and hears Ctrl-C.
pub(crate) struct Console {
    bar: Option<ProgressBar>,
    detail: Detail,
    /// What is under way, where that is not the only thing.
    title: Option<String>,
    arriving: Arriving,
    round: u32,
    shown: Instant,
}

impl Console {
    pub(crate) fn new(detail: Detail) -> Self {
        Self::titled(detail, None)
    }

    /// Of one of several migrations: what each of them does at its begin and its end goes without
    /// saying.
    pub(crate) fn of_one(detail: Detail, title: String) -> Self {
        Self::titled(detail, Some(title))
    }

    fn titled(detail: Detail, title: Option<String>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = match title {
                Some(_) => "> {msg}",
                None => "{prefix:>9} [{bar:12}] {msg}",
            };
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            ProgressBar::new(1).with_style(style)
        });
        let arriving = Arriving { peer: None, migration: None, phase: Phase::Setup };
        Self { bar, detail, title, arriving, round: 0, shown: Instant::now() }
    }

    pub(crate) fn arriving(&self) -> &Arriving {
        &self.arriving
    }

    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("vmigrate: {text}")),
            None => say!("vmigrate: {text}"),
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The share of what was sent that a round can leave at most, where a throttle holds the guest.
const LEFT_MOST: f64 = 0.914;

/// How long it may still take: this round, and those that follow if each leaves the share that this
/// one leaves. Nothing while there is nothing to go by.
fn to_go(remaining_pages: u64, owed_pages: u64, send_rate: f64, dirty_rate: f64) -> String {
    if send_rate < 1.0 || !dirty_rate.is_finite() {
        return String::new();
    }
    let seconds = |pages: f64| pages * PAGE_BYTES as f64 / send_rate;
    let share = (dirty_rate / send_rate).min(LEFT_MOST);
    let (remaining, owed) = (remaining_pages as f64, owed_pages as f64);
    let after = (owed + remaining * share) / (1.0 - share);
    format!("  ~{:.0} s", seconds(remaining + after))
}

impl source::Observer for Console {
    fn progress(&mut self, progress: source::Progress) {
        match progress {
            source::Progress::Setup if self.title.is_some() => {}
            source::Progress::Setup => self.say("connecting; the destination prepares its memory"),
            source::Progress::Round {
                round,
                remaining_pages,
                owed_pages,
                send_rate,
                dirty_rate,
                held_share,
            } => {
                match &self.bar {
                    Some(bar) => {
                        if self.round != round {
                            bar.set_prefix(format!("round {round}"));
                            bar.set_length(remaining_pages.max(1));
                            self.round = round;
                        }
                        bar.set_position(bar.length().unwrap_or(0).saturating_sub(remaining_pages));
                        let left = Bytes(remaining_pages * PAGE_BYTES);
                        let held = held_share * 100.0;
                        let to_go = to_go(remaining_pages, owed_pages, send_rate, dirty_rate);
                        // Both fit 80 columns.
                        bar.set_message(match &self.title {
                            Some(title) => {
                                format!("{title}  round {round}  {left} left  held {held:.0} %{to_go}")
                            }
                            None => format!(
                                "{left} left, {:.0} sent, {:.0} dirtied MB/s, held {held:.0} %{to_go}",
                                send_rate / 1e6,
                                dirty_rate / 1e6,
                            ),
                        });
                    }
                    None if self.shown.elapsed() > LINE_INTERVAL => {
                        self.shown = Instant::now();
                        let text = format!(
                            "{} left, {} owed, {} sent, {} dirtied, throttle {:.0} %{}",
                            Bytes(remaining_pages * PAGE_BYTES),
                            Bytes(owed_pages * PAGE_BYTES),
                            Rate(send_rate as u64),
                            Rate(dirty_rate as u64),
                            held_share * 100.0,
                            to_go(remaining_pages, owed_pages, send_rate, dirty_rate)
                        );
                        let title = self.title.as_ref().map_or(String::new(), |t| format!("{t}, "));
                        self.say(&format!("{title}round {round}: {text}"));
                    }
                    None => {}
                }
            }
            source::Progress::Stun { .. } => {}
            source::Progress::Unresolved { migration, since } if since.is_zero() => {
                self.say(&format!(
                    "handover {migration} is unresolved; the guest stays stopped while the \
                     destination is asked again (see `vmigrate resolve --help`)"
                ));
            }
            source::Progress::Unresolved { migration, since } => self.say(&format!(
                "handover {migration} is UNRESOLVED for {:.0} s: the guest is STOPPED here; if \
                 the destination cannot come back, `vmigrate resolve {migration}` decides",
                since.as_secs_f64()
            )),
            source::Progress::NotKnownThere { migration, standing } => self.say(&format!(
                "the destination answers for {migration}: {standing:?}; the guest stays stopped here"
            )),
            source::Progress::RunsThereToo { migration } => self.say(&format!(
                "WARNING: the guest runs here, and the destination says that it runs or ran there \
                 ({migration}): end one of them"
            )),
            source::Progress::GuestLost { migration } => self.say(&format!(
                "the destination refused {migration}, and there is no guest here: it is LOST"
            )),
            source::Progress::Answer(reply) => self.say(&reply.text),
        }
    }

    fn decided(&mut self, what: &str) {
        if self.detail == Detail::All {
            self.say(what);
        }
    }

    fn interrupts(&self) -> usize {
        interrupt::count()
    }
}

impl trial::Observer for Console {
    fn step(&mut self, step: Step<'_>) {
        match step {
            Step::TriesAgain { why } => {
                self.say(&format!("{why}; the guest runs on here, trying again"));
            }
            Step::RunsOnHere { linger } => self.say(&format!(
                "the guest runs on here for {:.1} s (Ctrl-C ends it now)",
                linger.as_secs_f64()
            )),
            Step::NoTestimony { why } => self.say(&why),
        }
    }
}

impl destination::Observer for Console {
    fn progress(&mut self, progress: destination::Progress) {
        match progress {
            destination::Progress::Rejected { what } => self.say(&format!("turned away {what}")),
            destination::Progress::Setup { peer, migration, pages } => {
                let (from, id) = (Some(peer.to_string()), Some(migration.to_string()));
                self.arriving = Arriving { peer: from, migration: id, phase: Phase::Setup };
                self.say(&format!(
                    "migration {migration} from {peer}: preparing {}",
                    Bytes(pages * PAGE_BYTES)
                ));
            }
            destination::Progress::Receiving => {
                self.arriving.phase = Phase::Copying;
                self.say("receiving");
            }
            destination::Progress::Prepared => {
                self.arriving.phase = Phase::Handover;
                self.say("complete and checked; ready to run");
            }
            destination::Progress::Unresolved { migration, since } if since.is_zero() => {
                self.say(&format!(
                    "the source of {migration} was lost; keeping the guest stopped until it is back"
                ));
            }
            destination::Progress::Unresolved { migration, since } => self.say(&format!(
                "the source of {migration} is lost for {:.0} s: the guest STANDS prepared here; if \
                 it cannot come back, `vmigrate resolve {migration}` decides",
                since.as_secs_f64()
            )),
            destination::Progress::SourceBack => self.say("the source is back"),
            destination::Progress::RecordFails { why } => {
                self.say(&format!("the handover record cannot be written: {why}"));
            }
            destination::Progress::Answer(reply) => self.say(&reply.text),
            destination::Progress::Running => self.say("the guest runs here"),
        }
    }

    fn interrupts(&self) -> usize {
        interrupt::count()
    }
}
