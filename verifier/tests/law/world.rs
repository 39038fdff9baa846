//! Guests whose history is known, and what collectors hear of them.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use verifier::law::Kind;
use workload::beat::said::{Beat, Kind as Motion, Said, Start, Tag, sealed};
use workload::beat::session::{Entry, Line, Name, Opening, Restored, SessionId};
use workload::line::PageFormat;
use workload::run::RunId;
use workload::spec::WorkloadSpec;
use workload::units::Bytes;

/// Microseconds between two beats.
pub(crate) const INTERVAL_US: u64 = 10_000;
/// Everything else here counts in such intervals.
pub(crate) const LATE: i64 = 4;
pub(crate) const QUIET: i64 = 12;
const TICK: i64 = 10;
const DESCRIBED: i64 = 25;
/// How far back second links reach: short, as the histories are.
const REACH: [u64; 6] = [2, 4, 8, 16, 32, 64];

pub(crate) fn linked(number: u64) -> [Option<u64>; 2] {
    [number.checked_sub(1), number.checked_sub(REACH[(number % 6) as usize])]
}

/// What happens in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Run(i64),
    Idle(i64),
    Pause(i64, bool),
    Stall,
    Hop(Hop, i64),
    /// Moved by others: nothing is said.
    Moved(i64),
    Snapshot,
    Restore(Meant, i64),
    Twin,
    Reset,
    Kill,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hop {
    Good,
    Aborted,
    Lost,
    Forked,
    /// What arrives is the snapshot.
    Old,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    No,
    Right,
    Range,
    /// Another beat is named.
    Wrong,
}

/// What is planted, beyond good histories.
pub(crate) const FAULTS: [&str; 11] = [
    "lost",
    "kill",
    "fork",
    "old",
    "rollback",
    "wrong",
    "twin",
    "after-end",
    "twice",
    "reset",
    "stall",
];

#[derive(Clone)]
struct Guest {
    tag: Tag,
    epoch: u32,
    number: u64,
    clock: u64,
    watermarks: Vec<u64>,
    stalled: BTreeSet<u32>,
    history: BTreeMap<u64, u16>,
    /// A generator that lies in the guest's memory.
    pool: SmallRng,
    line: usize,
    site: usize,
    on: bool,
}

struct Sent {
    at: i64,
    site: usize,
    line: usize,
    tag: Tag,
    beat: Beat,
}

pub(crate) struct World {
    random: SmallRng,
    /// Bits are drawn from what a copy of the guest does not have.
    fresh: bool,
    now: i64,
    lines: usize,
    sent: Vec<Sent>,
    words: Vec<(i64, Restored)>,
    starts: Vec<(i64, Tag)>,
    pub(crate) lost: BTreeSet<Tag>,
    pub(crate) faults: BTreeMap<Tag, BTreeSet<Kind>>,
    writers: u32,
    steady: bool,
    snapshot: Option<Guest>,
    guests: Vec<Guest>,
}

impl World {
    pub(crate) fn new(script: &[Step], seed: u64, writers: u32, fresh: bool) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let steady = random.random();
        let mut world = Self {
            random,
            fresh,
            now: 0,
            lines: 0,
            sent: Vec::new(),
            words: Vec::new(),
            starts: Vec::new(),
            lost: BTreeSet::new(),
            faults: BTreeMap::new(),
            writers,
            steady,
            snapshot: None,
            guests: Vec::new(),
        };
        world.boot();
        script.iter().for_each(|step| world.step(*step));
        world
    }

    /// Whether a run is anything but good.
    pub(crate) fn is_faulty(&self, tag: Tag) -> bool {
        self.lost.contains(&tag) || self.faults.get(&tag).is_some_and(|kinds| !kinds.is_empty())
    }

    /// What the last guest's writers have done.
    pub(crate) fn shown(&self) -> (Tag, Vec<u64>) {
        let guest = self.guests.last().unwrap();
        (guest.tag, guest.watermarks.clone())
    }

    /// Too few beats in an epoch to show that it wrote.
    pub(crate) fn is_short(&self, tag: Tag) -> bool {
        let mut beats = BTreeMap::<u32, u32>::new();
        for sent in self.sent.iter().filter(|s| s.tag == tag && s.beat.kind == Motion::Running) {
            *beats.entry(sent.beat.epoch).or_default() += 1;
        }
        let last = beats.keys().max().copied().unwrap_or(0);
        (0..=last).any(|epoch| beats.get(&epoch).copied().unwrap_or(0) < 2 * self.writers + 1)
    }

    /// When each line of beats began and ended.
    pub(crate) fn spans(&self) -> Vec<(i64, i64)> {
        let mut spans = BTreeMap::<usize, (i64, i64)>::new();
        for sent in &self.sent {
            let span = spans.entry(sent.line).or_insert((sent.at, sent.at));
            span.1 = sent.at;
        }
        let mut spans: Vec<_> = spans.into_values().collect();
        spans.sort_unstable();
        spans
    }

    pub(crate) fn last_beat(&self) -> i64 {
        self.sent.iter().map(|sent| sent.at).max().unwrap_or(0)
    }

    pub(crate) fn words(&self) -> BTreeSet<Restored> {
        self.words.iter().map(|(_, word)| *word).collect()
    }

    /// When a second line began.
    pub(crate) fn second_line(&self) -> i64 {
        self.sent.iter().filter(|sent| sent.line > 1).map(|sent| sent.at).min().unwrap_or(self.now)
    }

    fn new_line(&mut self) -> usize {
        self.lines += 1;
        self.lines
    }

    fn boot(&mut self) {
        let tag = Tag(self.starts.len() as u32 + 1);
        let line = self.new_line();
        let pool = SmallRng::seed_from_u64(self.random.random());
        self.starts.push((self.now, tag));
        self.guests.push(Guest {
            tag,
            epoch: 0,
            number: 0,
            clock: 0,
            watermarks: vec![0; self.writers as usize],
            stalled: BTreeSet::new(),
            history: BTreeMap::new(),
            pool,
            line,
            site: 0,
            on: true,
        });
        self.beat(self.guests.len() - 1, Motion::Running);
    }

    fn beat(&mut self, index: usize, kind: Motion) {
        for writer in 0..self.writers {
            let guest = &mut self.guests[index];
            let bits = loop {
                let bits: u32 = if self.fresh { self.random.random() } else { guest.pool.random() };
                if bits & 0xFFFF != 0 && bits >> 16 != 0 {
                    break bits;
                }
            };
            let number = guest.number;
            let links = linked(number)
                .map(|number| number.and_then(|n| guest.history.get(&n)).copied().unwrap_or(0));
            let beat = Beat {
                number,
                bits,
                kind,
                epoch: guest.epoch,
                writer: writer as u16,
                watermark: guest.watermarks[writer as usize],
                clock_us: guest.clock * INTERVAL_US,
                links,
            };
            guest.history.insert(number, bits as u16);
            guest.number += 1;
            let Guest { site, line, tag, .. } = *guest;
            self.sent.push(Sent { at: self.now, site, line, tag, beat });
        }
    }

    fn say(&mut self, kind: Motion) {
        (0..5).for_each(|_| self.beat(self.guests.len() - 1, kind));
    }

    fn pass(&mut self, time: i64, still: Option<usize>) {
        for _ in 0..time {
            self.now += 1;
            for index in (0..self.guests.len()).filter(|i| Some(*i) != still) {
                if !self.guests[index].on {
                    continue;
                }
                self.guests[index].clock += 1;
                for writer in 0..self.writers {
                    let done = if self.steady { 2 } else { self.random.random_range(1..=3) };
                    let guest = &mut self.guests[index];
                    if !guest.stalled.contains(&writer) {
                        guest.watermarks[writer as usize] += done;
                    }
                }
                self.beat(index, Motion::Running);
            }
        }
    }

    fn fault(&mut self, tag: Tag, kind: Kind) {
        self.faults.entry(tag).or_default().insert(kind);
    }

    fn all_lost(&mut self) {
        for guest in self.guests.iter_mut().filter(|guest| guest.on) {
            guest.on = false;
            self.lost.insert(guest.tag);
        }
    }

    fn step(&mut self, step: Step) {
        let main = self.guests.len() - 1;
        match step {
            Step::Run(time) | Step::Idle(time) => self.pass(time, None),
            Step::Pause(time, said) => {
                if said {
                    self.say(Motion::Held);
                }
                self.pass(time, Some(main));
            }
            Step::Stall => {
                self.guests[main].stalled.insert(0);
                let tag = self.guests[main].tag;
                self.lost.insert(tag);
            }
            Step::Hop(hop, gap) => self.hop(hop, gap),
            Step::Moved(gap) => {
                self.pass(gap, Some(main));
                let guest = self.guests.last_mut().unwrap();
                guest.site = 1 - guest.site;
            }
            Step::Snapshot => self.snapshot = self.guests.last().cloned(),
            Step::Restore(meant, gap) => self.restore(meant, gap, false),
            Step::Twin => self.restore(Meant::No, 0, true),
            Step::Reset => {
                self.all_lost();
                self.pass(3, None);
                self.boot();
            }
            Step::Kill => self.all_lost(),
            Step::End => {
                if self.guests[main].on {
                    self.say(Motion::Ended);
                    self.guests[main].on = false;
                }
            }
        }
    }

    fn hop(&mut self, hop: Hop, gap: i64) {
        let main = self.guests.len() - 1;
        self.say(Motion::Held);
        self.pass(gap, Some(main));
        let (tag, epoch, site) =
            (self.guests[main].tag, self.guests[main].epoch, self.guests[main].site);
        let mut arrived = self.guests[main].clone();
        match hop {
            Hop::Aborted => return,
            Hop::Lost => {
                self.guests[main].on = false;
                self.lost.insert(tag);
                return;
            }
            Hop::Forked => {
                arrived.line = self.new_line();
                self.fault(tag, Kind::Fork);
            }
            Hop::Good => self.guests[main].on = false,
            Hop::Old => {
                let Some(old) = self.snapshot.clone().filter(|old| old.tag == tag) else { return };
                self.guests[main].on = false;
                arrived = old;
                arrived.line = self.new_line();
                self.fault(tag, Kind::Rollback);
            }
        }
        (arrived.epoch, arrived.site, arrived.on) = (epoch + 1, 1 - site, true);
        self.guests.push(arrived);
        self.beat(self.guests.len() - 1, Motion::Running);
    }

    fn restore(&mut self, meant: Meant, gap: i64, both: bool) {
        let Some(snapshot) = self.snapshot.clone() else { return };
        let reached = self.guests.last().unwrap().number;
        if !both {
            for guest in &mut self.guests {
                if guest.on && guest.tag != snapshot.tag {
                    self.lost.insert(guest.tag);
                }
                guest.on = false;
            }
            if matches!(meant, Meant::Right | Meant::Range) {
                self.lost.remove(&snapshot.tag);
            }
        }
        self.pass(gap, None);
        let mut again = snapshot;
        (again.line, again.on) = (self.new_line(), true);
        let (tag, last) = (again.tag, again.number - 1);
        let bits = |number: u64| {
            let sent = self.sent.iter().find(|s| s.tag == tag && s.beat.number == number);
            // Of several lines the snapshot's.
            let low = again.history[&number];
            let of = self
                .sent
                .iter()
                .find(|s| s.tag == tag && s.beat.number == number && s.beat.bits as u16 == low);
            of.or(sent).map_or(0, |sent| sent.beat.bits)
        };
        let word = |first, last| Restored { tag, first, last, bits: bits(last) };
        match meant {
            Meant::Right => self.words.push((self.now, word(last, last))),
            Meant::Range => self.words.push((self.now, word(last.saturating_sub(8), last))),
            Meant::Wrong if last >= 1 => {
                let other = last.saturating_sub(7);
                self.words.push((self.now, word(other, other)));
            }
            _ => {}
        }
        if both {
            self.fault(tag, Kind::Fork);
        } else if matches!(meant, Meant::No | Meant::Wrong)
            && (meant == Meant::Wrong || reached != again.number)
        {
            self.fault(tag, Kind::Rollback);
        }
        self.guests.push(again);
    }
}

/// Somebody who hears, and what goes wrong with it.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    pub(crate) name: &'static str,
    pub(crate) boot: u32,
    pub(crate) sites: &'static [usize],
    pub(crate) start: i64,
    pub(crate) end: Option<i64>,
    pub(crate) loss: f64,
    pub(crate) double: f64,
    pub(crate) delay: i64,
    /// Nothing is heard.
    pub(crate) deaf: Option<(i64, i64)>,
    /// The host sleeps: what comes is heard when it wakes.
    pub(crate) sleep: Option<(i64, i64)>,
    /// Killed, and started again in its file.
    pub(crate) cut: Option<(i64, i64)>,
    /// Closed, and started again.
    pub(crate) close: Option<(i64, i64)>,
    /// The wall clock steps by so much at such a time.
    pub(crate) step: (i64, i64),
}

impl Collector {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            boot: 0,
            sites: &[0, 1],
            start: 0,
            end: None,
            loss: 0.0,
            double: 0.0,
            delay: 0,
            deaf: None,
            sleep: None,
            cut: None,
            close: None,
            step: (i64::MAX, 0),
        }
    }

    /// With anything that may go wrong on the way or with it.
    pub(crate) fn troubled(name: &'static str, world: &World, random: &mut SmallRng) -> Self {
        let end = world.now + 1;
        let mut span = |share: f64| {
            let ends = [random.random_range(0..=end), random.random_range(0..=end)];
            let span = (ends[0].min(ends[1]), ends[0].max(ends[1]));
            random.random_bool(share).then_some(span)
        };
        let (deaf, sleep, cut, close) = (span(0.2), span(0.2), span(0.2), span(0.16));
        let start = if random.random_bool(0.2) { random.random_range(0..=end / 2) } else { 0 };
        let early = random.random_bool(0.1);
        let step = random
            .random_bool(0.3)
            .then(|| (random.random_range(0..=end), *[-3600, -2, 2, 3600].choose(random).unwrap()));
        Self {
            boot: random.random_range(0..2),
            sites: [&[0, 1][..], &[0, 1], &[0], &[1]].choose(random).unwrap(),
            start,
            end: early.then(|| random.random_range(end / 2..=end).max(1)),
            loss: *[0.0, 0.0, 0.1, 0.1, 0.4].choose(random).unwrap(),
            double: *[0.0, 0.2].choose(random).unwrap(),
            delay: *[0, 0, 1, LATE].choose(random).unwrap(),
            deaf,
            sleep,
            cut: cut.filter(|(a, z)| a < z),
            close: if cut.is_some() { None } else { close.filter(|(a, z)| a < z) },
            step: step.unwrap_or((i64::MAX, 0)),
            ..Self::new(name)
        }
    }

    /// The text of its file.
    pub(crate) fn hear(&self, world: &World, random: &mut SmallRng) -> String {
        let end = self.end.unwrap_or(world.now + LATE + 2);
        let mut events: Vec<(i64, f64, Entry)> = Vec::new();
        let asleep = |at: i64| self.sleep.filter(|(a, z)| *a <= at && at < *z);
        let awake_at = |at: i64| asleep(at).map_or(at, |(_, z)| z);
        for (place, (from, tag)) in world.starts.iter().enumerate() {
            let until = world.starts.get(place + 1).map_or(end, |(at, _)| *at);
            let mut at = *from;
            while at < until.max(from + 1) {
                let start = Start {
                    interval_us: INTERVAL_US,
                    weak: false,
                    spec: spec(*tag, world.writers),
                };
                let said = Said::Start(Box::new(start));
                events.push((awake_at(at), -1.0, Entry::Heard(*tag, said)));
                at += DESCRIBED;
            }
        }
        for (order, sent) in world.sent.iter().enumerate() {
            let deaf = self.deaf.is_some_and(|(a, z)| a <= sent.at && sent.at < z);
            if !self.sites.contains(&sent.site) || deaf || random.random_bool(self.loss) {
                continue;
            }
            for _ in 0..1 + u32::from(random.random_bool(self.double)) {
                let at = sent.at + random.random_range(0..=self.delay);
                let said = Entry::Heard(sent.tag, Said::Beat(sent.beat));
                events.push((awake_at(at), order as f64, said));
            }
        }
        for (at, word) in &world.words {
            let order = world.sent.iter().filter(|sent| sent.at < *at).count() as f64 - 0.5;
            events.push((awake_at(*at), order, Entry::Restored(*word)));
        }
        let mut at = self.start;
        while at < end {
            if asleep(at).is_none() {
                events.push((at, f64::MAX, Entry::Tick { wall_us: 0, words: 0 }));
            }
            at += TICK;
        }
        events.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        self.write(&events, end, random)
    }

    fn write(&self, events: &[(i64, f64, Entry)], end: i64, random: &mut SmallRng) -> String {
        let (mut spans, mut from) = (Vec::new(), self.start);
        let breaks = self.cut.map(|(a, z)| (a, z, false)).into_iter();
        for (a, z, closed) in breaks.chain(self.close.map(|(a, z)| (a, z, true))) {
            if from < a && a < end {
                spans.push((from, a, closed));
                from = z;
            }
        }
        if from < end {
            spans.push((from, end, true));
        }
        let mut text = String::new();
        let mut before = None;
        for (from, until, closed) in spans {
            let session = SessionId(random.random());
            let mut number = 0;
            let mut line = |at: i64, entry: Entry| {
                let at_us = (at - from) as u64 * INTERVAL_US;
                text += &sealed(&Line { session, number, at_us, entry }.text());
                number += 1;
                number
            };
            let wall = |at: i64| {
                let step = if at >= self.step.0 { self.step.1 * 100 } else { 0 };
                (1_000_000_000 + at + step) as u64 * INTERVAL_US
            };
            line(
                from,
                Entry::Open(Opening {
                    collector: Name::of(self.name),
                    boot: self.boot,
                    boot_us: (1000 * i64::from(self.boot) + from) as u64 * INTERVAL_US,
                    wall_us: wall(from),
                    late_us: LATE as u64 * INTERVAL_US,
                    after: before,
                }),
            );
            let mut lines = 1;
            for (at, _, entry) in events.iter().filter(|(at, ..)| from <= *at && *at < until) {
                lines = match entry {
                    Entry::Tick { .. } => line(*at, Entry::Tick { wall_us: wall(*at), words: 0 }),
                    entry => line(*at, entry.clone()),
                };
            }
            if closed {
                lines = line(until, Entry::Close(lines + 1));
            }
            before = Some((session, lines));
        }
        text
    }
}

fn spec(tag: Tag, writers: u32) -> WorkloadSpec {
    WorkloadSpec {
        format: PageFormat::V2 { run: RunId(u64::from(tag.0)) },
        seed: 1,
        memory: Bytes(1 << 20),
        writers,
        workload: "stream".parse().unwrap(),
    }
}

/// A history, with a fault at its end or without.
pub(crate) fn script(fault: Option<&str>, random: &mut SmallRng) -> Vec<Step> {
    let mut n = |low: i64, high: i64| random.random_range(low..=high);
    let mut steps = vec![Step::Run(n(4, 24))];
    for _ in 0..n(0, 3) {
        match n(0, 5) {
            0 => steps.push(Step::Run(n(4, 24))),
            1 => steps.push(Step::Pause(n(1, 20), n(0, 1) == 1)),
            2 => steps.push(Step::Hop(Hop::Good, n(1, 6))),
            3 => steps.push(Step::Hop(Hop::Aborted, n(1, 6))),
            4 => steps.push(Step::Moved(n(0, 6))),
            _ => {
                steps.extend([Step::Snapshot, Step::Run(n(4, 24))]);
                let meant = if n(0, 1) == 0 { Meant::Right } else { Meant::Range };
                steps.push(Step::Restore(meant, n(LATE + 1, 12)));
            }
        }
        steps.push(Step::Run(n(4, 24)));
    }
    let run = |n: i64| Step::Run(n);
    match fault {
        None => {
            if n(0, 9) < 6 {
                steps.push(Step::End);
            }
        }
        Some("lost") => steps.extend([Step::Hop(Hop::Lost, n(1, 6)), Step::Idle(30)]),
        Some("kill") => steps.extend([Step::Kill, Step::Idle(30)]),
        Some("fork") => steps.extend([Step::Hop(Hop::Forked, 2), run(n(LATE * 2, 24))]),
        Some("old") => {
            steps.extend([Step::Snapshot, run(n(2, 24)), Step::Hop(Hop::Old, 2), run(n(4, 24))]);
        }
        Some("rollback") => {
            let gap = n(0, 12);
            let restore = Step::Restore(Meant::No, gap);
            steps.extend([Step::Snapshot, run(n(1, 24)), restore, run(n(4, 24))]);
        }
        Some("wrong") => {
            let restore = Step::Restore(Meant::Wrong, n(0, 12));
            steps.extend([run(8), Step::Snapshot, run(n(1, 24)), restore, run(n(4, 24))]);
        }
        Some("twin") => {
            steps.extend([Step::Snapshot, run(n(1, 12)), Step::Twin, run(n(LATE * 2, 24))]);
        }
        Some("after-end") => {
            let restore = Step::Restore(Meant::No, n(4, 24));
            steps.extend([Step::Snapshot, run(n(1, 24)), Step::End, restore, run(n(4, 24))]);
        }
        Some("twice") => {
            let (one, two) = (n(LATE + 1, 12), n(LATE + 1, 12));
            steps.extend([
                Step::Snapshot,
                run(n(4, 24)),
                Step::Restore(Meant::Right, one),
                run(n(4, 24)),
                Step::Restore(Meant::No, two),
                run(n(4, 24)),
            ]);
        }
        // No fault: ended, and started again.
        Some("again") => steps.extend([Step::End, Step::Reset, run(n(QUIET + 4, 40))]),
        Some("reset") => steps.extend([Step::Reset, run(n(QUIET + 4, 40))]),
        Some(_) => steps = vec![Step::Stall, run(n(4, 24))],
    }
    steps
}

/// Less evidence, or the same in other clothes, which is the second answer.
pub(crate) fn mutated(texts: &[String], how: &str, random: &mut SmallRng) -> (Vec<String>, bool) {
    let mut texts = texts.to_vec();
    let at = random.random_range(0..texts.len());
    let lines: Vec<String> = texts[at].split_inclusive('\n').map(str::to_owned).collect();
    match how {
        "shuffle" => {
            for text in &mut texts {
                let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
                lines.shuffle(random);
                *text = lines.concat();
            }
            texts.shuffle(random);
            return (texts, true);
        }
        "double" => {
            texts.push(lines.into_iter().filter(|_| random.random()).collect());
            return (texts, true);
        }
        "cat" => return (vec![texts.concat()], true),
        "remove" => {
            let share = *[0.02, 0.2, 0.7].choose(random).unwrap();
            texts[at] = lines.into_iter().filter(|_| !random.random_bool(share)).collect();
        }
        "span" => {
            let ends = [random.random_range(0..=lines.len()), random.random_range(0..=lines.len())];
            let (from, until) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
            texts[at] = lines[..from].iter().chain(&lines[until..]).cloned().collect();
        }
        "one" if !lines.is_empty() => {
            let gone = random.random_range(0..lines.len());
            let left = lines.iter().enumerate().filter(|(i, _)| *i != gone);
            texts[at] = left.map(|(_, line)| line.clone()).collect();
        }
        "cut" => {
            let end = random.random_range(0..=texts[at].len());
            texts[at].truncate(end);
        }
        "head" => {
            let begin = random.random_range(0..=texts[at].len());
            texts[at].drain(..begin);
        }
        "garble" => {
            let mut bytes = texts[at].clone().into_bytes();
            for _ in 0..*[1, 5].choose(random).unwrap() {
                if !bytes.is_empty() {
                    let place = random.random_range(0..bytes.len());
                    bytes[place] = *b"0 aZ\n#".choose(random).unwrap();
                }
            }
            texts[at] = String::from_utf8(bytes).unwrap();
        }
        "kind" => {
            let kind = *["C", "T", "R", "S", "P", "E", "Z"].choose(random).unwrap();
            let is = |line: &String| line.split(' ').nth(3) == Some(kind);
            texts[at] = lines.into_iter().filter(|line| !is(line)).collect();
        }
        "lose" => drop(texts.remove(at)),
        "session" if !lines.is_empty() => {
            let session = lines.choose(random).unwrap()[..9].to_owned();
            texts[at] = lines.into_iter().filter(|line| !line.starts_with(&session)).collect();
        }
        _ => {}
    }
    (texts, false)
}

pub(crate) const MUTATIONS: [&str; 12] = [
    "shuffle", "double", "cat", "remove", "one", "span", "cut", "head", "garble", "kind", "lose",
    "session",
];
