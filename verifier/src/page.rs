//! Judges one page: what each of its lines is, against what it must be at a moment.
//!
//! Lines are judged in segments, the part of a slot that lies in the page: a segment that stands
//! as a whole at another generation is stale (or of the future) as a whole, whatever its single
//! lines look like; what no generation explains is judged line by line.

use workload::content::Content;
use workload::line::{Generation, Line, LineAddress, StampKey, ZERO_LINE};
use workload::pattern::{Access, Slot};
use workload::spec::{Segment, Workload};

use crate::classify::{self, AHEAD_MAX, Class, Expectation, LineFault, Moments};
use crate::expected::Expected;
use crate::memory::{Memory, Moment};

/// How many generations back a line's content before is looked for.
const EARLIER_MAX: u64 = 16;
/// How many generations ahead an all-zero record of a running writer is looked for.
const ZERO_AHEAD_MAX: u64 = 64;

/// A faulty line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) address: LineAddress,
    /// Generation of the slot that must stand there.
    pub(crate) expected: Generation,
    pub(crate) fault: LineFault,
}

/// A slot of a running writer that is newer than the watermark read before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    pub(crate) slot: Slot,
    pub(crate) generation: Generation,
}

/// What a page is, apart from right.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub(crate) faults: Vec<Found>,
    pub(crate) ahead: Vec<Ahead>,
}

/// Judges pages of one memory at one moment.
#[derive(Debug)]
pub(crate) struct Judge<'a, M> {
    pub(crate) memory: &'a M,
    pub(crate) workload: &'a Workload,
    pub(crate) expected: &'a Expected,
    pub(crate) moment: Moment,
}

/// One segment with all that is known about it.
struct View<'a> {
    segment: Segment,
    content: &'a Content,
    generation: Generation,
    found: Vec<Line>,
}

impl View<'_> {
    fn line_at(&self, key: StampKey, address: LineAddress, generation: Generation) -> Line {
        self.content.line(key, self.segment.place, address, generation)
    }

    fn lines(&self) -> impl Iterator<Item = (LineAddress, &Line)> {
        self.segment.lines.clone().zip(&self.found)
    }

    /// How many lines from the first on stand at `generation`.
    fn prefix_at(&self, key: StampKey, generation: Generation) -> usize {
        let mut lines = self.lines();
        let end = lines.position(|(a, found)| *found != self.line_at(key, a, generation));
        end.unwrap_or(self.found.len())
    }

    fn stands_at(&self, key: StampKey, generation: Generation) -> bool {
        self.prefix_at(key, generation) == self.found.len()
    }

    /// Whether lines from `first` on stand at `generation`.
    fn suffix_at(&self, key: StampKey, first: usize, generation: Generation) -> bool {
        self.lines().skip(first).all(|(a, found)| *found == self.line_at(key, a, generation))
    }

    /// The newest generation that any line of the segment is believably stamped with.
    fn newest_stamp(&self, key: StampKey) -> Option<Generation> {
        let stamps = self.lines().filter_map(|(address, found)| match key.identify(found) {
            Some((at, generation)) => {
                let believable = generation <= self.generation + AHEAD_MAX;
                (at == address && believable).then_some(generation)
            }
            _ => None,
        });
        stamps.max()
    }
}

impl<M: Memory> Judge<'_, M> {
    /// The fast path: recompute and compare, one generation per slot and not per line.
    #[inline]
    pub(crate) fn is_right(&self, page: u64, writer: usize) -> bool {
        let key = self.workload.key();
        for segment in self.workload.segments(writer, page) {
            let generation = self.generation(writer, segment.slot);
            let content = self.workload.content(segment.place);
            let mut lines = segment.lines;
            let right = match content.is_plain() {
                true => self.memory.stands_at(key, lines, generation),
                false => lines.all(|a| {
                    self.memory.load(a) == content.line(key, segment.place, a, generation)
                }),
            };
            if !right {
                return false;
            }
        }
        true
    }

    #[inline]
    fn generation(&self, writer: usize, slot: Option<Slot>) -> Generation {
        slot.map_or(0, |slot| self.expected.generation(writer, slot))
    }

    /// The slow path: which lines are wrong, and how.
    pub(crate) fn judge(&self, page: u64, writer: usize) -> Judged {
        let key = self.workload.key();
        let mut judged = Judged::default();
        let mut moments = Vec::new();
        for segment in self.workload.segments(writer, page) {
            let view = View {
                content: self.workload.content(segment.place),
                generation: self.generation(writer, segment.slot),
                found: segment.lines.clone().map(|a| self.memory.load(a)).collect(),
                segment,
            };
            let before = judged.faults.len();
            if !view.stands_at(key, view.generation) && !self.is_excused(writer, &view, &mut judged)
            {
                self.judge_segment(&view, &mut judged.faults);
            }
            self.add_moments(writer, &view, &judged.faults[before..], &mut moments);
        }
        let aged = |f: &Found| matches!(f.fault.class, Class::Stale { .. } | Class::Future { .. });
        // Neighbours that no single watermark explains were copied at two different times.
        if judged.faults.iter().any(aged) && classify::torn(moments.into_iter()) {
            for found in judged.faults.iter_mut().filter(|f| aged(f)) {
                found.fault.class = Class::Torn;
            }
        }
        judged
    }

    /// Whether the moment of looking excuses a segment that is not at its generation.
    fn is_excused(&self, writer: usize, view: &View<'_>, judged: &mut Judged) -> bool {
        let Some(slot) = view.segment.slot else { return false };
        match self.moment {
            Moment::Exact => false,
            Moment::Stopped => self.in_flight(writer, slot, view.generation),
            Moment::Running => match self.newer(view) {
                None => false,
                Some(generation) => {
                    judged.ahead.push(Ahead { slot, generation });
                    true
                }
            },
        }
    }

    /// Whether the slot is the one that the next operation writes, and stands as that operation
    /// leaves it when stopped anywhere: a prefix of the new generation, the rest of the old; the
    /// line between the two may itself be half written, word by word.
    fn in_flight(&self, writer: usize, slot: Slot, generation: Generation) -> bool {
        let watermark = self.expected.of_writer(writer).watermark();
        let pattern = &self.workload.shares()[writer].pattern;
        if pattern.access(watermark) != Access::Write(slot) {
            return false;
        }
        let first = self.workload.slot_line(writer, slot);
        let lines = first..first + self.workload.record_lines();
        let at = |address, generation| {
            self.memory.load(address) == self.workload.line(first, address, generation)
        };
        let mut rest = lines.skip_while(|address| at(*address, generation + 1));
        let Some(border) = rest.next() else { return true };
        let line = |generation| self.workload.line(first, border, generation);
        let (new, old, found) = (line(generation + 1), line(generation), self.memory.load(border));
        let written = found.iter().zip(&new).take_while(|(found, new)| found == new).count();
        found[written..] == old[written..] && rest.all(|address| at(address, generation))
    }

    /// The generation that a segment of a running writer has reached, if that explains it.
    fn newer(&self, view: &View<'_>) -> Option<Generation> {
        let key = self.workload.key();
        let least = view.generation + 1;
        // The newest stamp, and beyond it a generation that writes zeros.
        let from = view.newest_stamp(key).unwrap_or(view.generation).max(least);
        (from..=from + ZERO_AHEAD_MAX)
            .take_while(|g| *g == from || view.found[0] == ZERO_LINE)
            .find(|g| {
                let prefix = view.prefix_at(key, *g);
                prefix > 0 && view.suffix_at(key, prefix, g - 1)
            })
    }

    fn judge_segment(&self, view: &View<'_>, faults: &mut Vec<Found>) {
        let key = self.workload.key();
        let expected = view.generation;
        let whole = view.newest_stamp(key).filter(|g| *g != expected && view.stands_at(key, *g));
        let must_be_zero =
            view.segment.lines.clone().all(|a| view.line_at(key, a, expected) == ZERO_LINE);
        for (address, found) in view.lines() {
            let line = view.line_at(key, address, expected);
            let stamped = view.content.stamped_at(address, expected);
            // Where a generation left the line as it was (zero, mostly), the one before that.
            let earlier = (stamped.saturating_sub(EARLIER_MAX)..stamped).rev();
            let before =
                earlier.map(|g| view.line_at(key, address, g)).find(|before| *before != line);
            let expectation =
                Expectation { line: &line, generation: stamped, before: before.as_ref() };
            let fault = classify::line(key, self.workload.lines(), address, expectation, found);
            let Some(mut fault) = fault else { continue };
            if let Some(generation) = whole {
                fault.found = Some(generation);
                fault.class = match generation.cmp(&expected) {
                    std::cmp::Ordering::Less if must_be_zero => Class::Unzeroed,
                    std::cmp::Ordering::Less => Class::Stale { behind: expected - generation },
                    _ => Class::Future { ahead: generation - expected },
                };
            }
            faults.push(Found { address, expected, fault });
        }
    }

    /// When the stamped lines of a segment would have been right, as far as that can be told.
    fn add_moments(
        &self,
        writer: usize,
        view: &View<'_>,
        faults: &[Found],
        moments: &mut Vec<Moments>,
    ) {
        let Some(slot) = view.segment.slot else { return };
        let key = self.workload.key();
        let written =
            |generation| self.expected.written_by(self.workload, writer, slot, generation);
        for (address, found) in view.lines() {
            let wrong = faults.iter().find(|f| f.address == address).map(|f| f.fault.class);
            let counts = matches!(wrong, None | Some(Class::Stale { .. } | Class::Future { .. }));
            let Some((at, stamp)) = key.identify(found) else { continue };
            if !counts || at != address {
                continue;
            }
            moments.push(Moments {
                since: written(stamp).map_or(0, |k| k + 1),
                until: written(view.content.rewritten_after(address, stamp)).unwrap_or(u64::MAX),
            });
        }
    }
}
