//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use migrate_core::memory::PAGE_BYTES;
use migrate_core::trial::{self, Step};
use migrate_core::{destination, source};
use workload::units::{Bytes, Rate};
use workload::{interrupt, say};

/// Time between plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Says on standard error what goes on, and hears Ctrl-C.
pub(crate) struct Console {
    bar: Option<ProgressBar>,
    round: u32,
    shown: Instant,
}

impl Console {
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:>9} [{bar:12}] {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            ProgressBar::new(1).with_style(style)
        });
        Self { bar, round: 0, shown: Instant::now() }
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

impl source::Observer for Console {
    fn progress(&mut self, progress: source::Progress) {
        match progress {
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
                        // Fits 80 columns.
                        bar.set_message(format!(
                            "{} left, {:.0} sent, {:.0} dirtied MB/s, held {:.0} %",
                            Bytes(remaining_pages * PAGE_BYTES),
                            send_rate / 1e6,
                            dirty_rate / 1e6,
                            held_share * 100.0
                        ));
                    }
                    None if self.shown.elapsed() > LINE_INTERVAL => {
                        self.shown = Instant::now();
                        let text = format!(
                            "{} left, {} owed, {} sent, {} dirtied, throttle {:.0} %",
                            Bytes(remaining_pages * PAGE_BYTES),
                            Bytes(owed_pages * PAGE_BYTES),
                            Rate(send_rate as u64),
                            Rate(dirty_rate as u64),
                            held_share * 100.0
                        );
                        self.say(&format!("round {round}: {text}"));
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
        self.say(what);
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
            destination::Progress::Setup { peer, migration, pages } => self.say(&format!(
                "migration {migration} from {peer}: preparing {}",
                Bytes(pages * PAGE_BYTES)
            )),
            destination::Progress::Receiving => self.say("receiving"),
            destination::Progress::Prepared => self.say("complete and checked; ready to run"),
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
