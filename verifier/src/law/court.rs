//! The judge: one pass by number, and lookups of what beats are linked to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use workload::beat::books::{Books, Heard, Run, Told};
use workload::beat::said::{self, Beat, Tag, linked};
use workload::beat::session::{Name, Restored};

use super::ruling::{Kind, Reason, Ruling};
use crate::verdict::Verdict;

/// Most pairs of beats that contradict each other by their watermarks that are weighed.
const INVERSIONS_MAX: usize = 1 << 16;
/// Most of them for one beat.
const INVERSIONS_OF_ONE_MAX: usize = 64;
/// Most contents of one number that are weighed.
const CONTENTS_MAX: usize = 16;
/// No beat.
const NONE: u32 = u32::MAX;

/// Numbers that the law leaves to whoever applies it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Beats that nothing vouches for are borne within so many numbers.
    pub near: u64,
    /// Shortest time without a beat that is a silence.
    pub quiet_us: u64,
    /// And as many beats' time.
    pub quiet_beats: u64,
    /// What may pass from a beat's being said to its being heard, instead of what collectors say.
    pub late_us: Option<u64>,
    /// The numbers that a beat is linked to.
    pub linked: fn(u64) -> [Option<u64>; 2],
}

impl Limits {
    /// Those of docs/verification.md.
    pub const DEFAULT: Self =
        Self { near: 32, quiet_us: 1_000_000, quiet_beats: 20, late_us: None, linked };
}

/// Collectors that must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand(pub Vec<(Name, u64)>);

/// What books prove of each run that was heard in them. The books must be settled.
pub fn judge(books: &Books, demand: &Demand, limits: &Limits) -> Vec<Ruling> {
    let holes = books.holes();
    let mut collectors = BTreeMap::<Name, u64>::new();
    for opening in books.sessions.iter().filter_map(|session| session.opening.as_ref()) {
        *collectors.entry(opening.collector.clone()).or_default() += 1;
    }
    let missing = |(name, sessions): &(Name, u64)| {
        collectors.get(name).copied().unwrap_or(0) < (*sessions).max(1)
    };
    let nameless = books.sessions.iter().any(|session| session.opening.is_none());
    let lost = books.lacks_session() || demand.0.iter().any(missing);
    let mut reasons = BTreeSet::new();
    if holes.iter().any(Option::is_some) || nameless {
        reasons.insert(Reason::Hole);
    }
    if lost {
        reasons.insert(Reason::Lost);
    }
    let heard = books.runs.iter().filter(|(_, run)| !run.heard.is_empty());
    let case = |(tag, run): (&Tag, &Run)| {
        let court = Court::new(books, run, &holes, lost || nameless, limits);
        court.judge(*tag, reasons.clone(), &collectors)
    };
    heard.map(case).collect()
}

/// A boot of a host, and when something happened there: only such times are compared.
type Boot = u32;

struct Court<'a> {
    books: &'a Books,
    run: &'a Run,
    holes: &'a [Option<u64>],
    lost: bool,
    limits: &'a Limits,
    /// Where the hearings of each distinct beat begin, and where the last one's end.
    begins: Vec<u32>,
    /// The beats that each beat vouches for.
    ties: Vec<[u32; 2]>,
}

/// When a word was told by the clock of the boot, in which session and line, and what it says.
type WordHeard = (u64, u32, u64, Restored);

/// Words, as told to one collector in one boot of its host.
struct Words {
    /// When each was told, where, and what it says; in order.
    told: BTreeMap<(Name, Boot), Vec<WordHeard>>,
    /// How many restores there were.
    count: usize,
    /// What whoever was told all of them was told.
    all: Vec<Restored>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Forgotten {
    No,
    Perhaps,
    Yes,
}

impl<'a> Court<'a> {
    fn new(
        books: &'a Books,
        run: &'a Run,
        holes: &'a [Option<u64>],
        lost: bool,
        limits: &'a Limits,
    ) -> Self {
        let heard = &run.heard;
        let begins = (0..=heard.len())
            .filter(|i| *i == 0 || *i == heard.len() || heard[*i].beat != heard[*i - 1].beat);
        let begins = begins.map(|i| i as u32).collect();
        let mut court = Self { books, run, holes, lost, limits, begins, ties: Vec::new() };
        court.ties = (0..court.count()).map(|i| court.vouched_by(i)).collect();
        court
    }

    /// How many distinct beats were heard.
    fn count(&self) -> usize {
        self.begins.len() - 1
    }

    fn beat(&self, i: usize) -> &'a Beat {
        &self.run.heard[self.begins[i] as usize].beat
    }

    fn hearings(&self, i: usize) -> &'a [Heard] {
        &self.run.heard[self.begins[i] as usize..self.begins[i + 1] as usize]
    }

    /// The distinct beats of a number; `near` is a beat behind it.
    fn at(&self, number: u64, near: usize) -> std::ops::Range<usize> {
        let is = |i: usize| self.beat(i).number == number;
        // Where nothing is lost and nothing contradicts, its place is known.
        let guess = (self.beat(near).number.checked_sub(number))
            .and_then(|back| near.checked_sub(usize::try_from(back).ok()?));
        let begin = match guess {
            Some(guess) if is(guess) && (guess == 0 || !is(guess - 1)) => guess,
            _ => partition(self.count(), |i| self.beat(i).number < number),
        };
        let end = (begin..self.count()).find(|i| !is(*i)).unwrap_or(self.count());
        begin..end
    }

    /// What a beat is linked to: number, and the low half of the bits there.
    fn links(&self, i: usize) -> impl Iterator<Item = (u64, u16)> + use<> {
        let beat = self.beat(i);
        let numbers = (self.limits.linked)(beat.number);
        numbers
            .into_iter()
            .zip(beat.links)
            .filter(|(_, bits)| *bits != 0)
            .filter_map(|(n, bits)| Some((n?, bits)))
    }

    /// Of two beats of one number that share their low half neither is vouched for.
    fn vouched_by(&self, i: usize) -> [u32; 2] {
        let mut vouched = [NONE; 2];
        for (slot, (number, bits)) in vouched.iter_mut().zip(self.links(i)) {
            let mut same = self.at(number, i).filter(|x| self.beat(*x).bits as u16 == bits);
            if let (Some(one), None) = (same.next(), same.next()) {
                *slot = one as u32;
            }
        }
        vouched
    }

    fn vouches_for(&self, i: usize) -> impl Iterator<Item = usize> + use<> {
        self.ties[i].into_iter().filter(|x| *x != NONE).map(|x| x as usize)
    }

    /// The boot in which a session was written.
    fn boot_of(&self, session: u32) -> Option<Boot> {
        self.books.sessions[session as usize].opening.as_ref().map(|opening| opening.boot)
    }

    /// When, by the clock of the boot.
    fn moment(&self, session: u32, at_us: u64) -> Option<(Boot, u64)> {
        let opening = self.books.sessions[session as usize].opening.as_ref()?;
        Some((opening.boot, opening.boot_us.saturating_add(at_us)))
    }

    fn times(&self, i: usize, boot: Boot) -> impl Iterator<Item = u64> {
        let moments = self.hearings(i).iter().filter_map(|h| self.moment(h.session, h.at_us));
        moments.filter(move |(b, _)| *b == boot).map(|(_, at)| at)
    }

    fn first_heard(&self, i: usize, boot: Boot) -> Option<u64> {
        self.times(i, boot).min()
    }

    fn last_heard(&self, i: usize, boot: Boot) -> Option<u64> {
        self.times(i, boot).max()
    }

    fn first_line(&self, i: usize, session: u32) -> Option<u64> {
        self.hearings(i).iter().filter(|h| h.session == session).map(|h| u64::from(h.line)).min()
    }

    fn late_us(&self, boot: Boot) -> u64 {
        let openings = self.books.sessions.iter().filter_map(|s| s.opening.as_ref());
        let late = openings.filter(|opening| opening.boot == boot).map(|opening| opening.late_us);
        self.limits.late_us.unwrap_or_else(|| late.max().unwrap_or(0))
    }

    fn judge(
        &self,
        tag: Tag,
        mut reasons: BTreeSet<Reason>,
        collectors: &BTreeMap<Name, u64>,
    ) -> Ruling {
        let beats = 0..self.count();
        let start = self.run.start.as_ref();
        if start.is_none() {
            reasons.insert(Reason::NoDescription);
        }
        let seen = beats.clone().map(|i| u32::from(self.beat(i).writer) + 1).max().unwrap_or(1);
        let writers = start.map_or(seen, |start| start.spec.writers.max(1));

        let words = self.words();
        let parts: Vec<Option<usize>> = match words.count {
            // Whatever is heard without a word is of one part.
            0 => Vec::new(),
            _ => beats.clone().map(|i| self.part(i, &words)).collect(),
        };
        let part = |i: usize| parts.get(i).copied().unwrap_or(Some(0));
        if words.count > 0 && beats.clone().any(|i| part(i).is_none()) {
            reasons.insert(Reason::NotToldThere);
        }
        let named = |word: &Restored| {
            let at = self.at(word.last, 0);
            at.into_iter().any(|i| self.beat(i).bits == word.bits)
        };
        if self.run.words.iter().any(|told| !named(&told.what)) {
            reasons.insert(Reason::BeatNotHeard);
        }
        let forgotten = |x: usize, b: usize| match (part(x), part(b)) {
            (Some(x_part), Some(b_part)) => {
                forgotten(self.beat(x).number, words.all.get(x_part..b_part).unwrap_or_default())
            }
            _ => Forgotten::Perhaps,
        };

        let raw = self.contradictions();
        let mut weighed = raw.clone();
        let mut other = Vec::new();
        if words.count > 0 {
            weighed.retain(|(x, b)| {
                let in_order = part(*x).zip(part(*b)).is_none_or(|(x, b)| x <= b);
                let (x, b) = if in_order { (*x, *b) } else { (*b, *x) };
                forgotten(x, b) == Forgotten::No
            });
            let earlier = |(x, b): &(usize, usize)| match part(*b) < part(*x) {
                true => *b,
                false => *x,
            };
            let contradicted: BTreeSet<usize> = raw.iter().map(earlier).collect();
            for b in beats.clone() {
                for x in self.vouches_for(b) {
                    if !contradicted.contains(&x) && forgotten(x, b) == Forgotten::Yes {
                        other.push((x, b));
                    }
                }
            }
            let tied: BTreeSet<usize> = other.iter().map(|(x, _)| *x).collect();
            if tied.len() < 2 {
                if !tied.is_empty() {
                    reasons.insert(Reason::WhichBeat);
                }
                other.clear();
            }
        }

        let torn = self.lost || self.holes.iter().any(Option::is_some);
        let both = BTreeSet::from([Kind::Fork, Kind::Rollback]);
        let rollback = || if torn { both.clone() } else { BTreeSet::from([Kind::Rollback]) };
        let mut kinds = BTreeSet::new();
        let mut because = None;
        if !weighed.is_empty() {
            match self.weigh(&weighed, words.count > 0) {
                Some(found) => kinds = found,
                None => drop(reasons.insert(Reason::Contradiction)),
            }
            because = weighed.first().map(|(x, b)| self.in_words(*x, *b));
        }
        if !other.is_empty() {
            match self.weigh(&other, true) {
                Some(_) if kinds.is_empty() || torn => kinds.extend(rollback()),
                Some(_) => {}
                None => drop(reasons.insert(Reason::Contradiction)),
            }
            because = because.or(other.first().map(|(x, b)| self.in_words(*x, *b)));
        }
        if let Some((p, f)) = self.unequal() {
            kinds.extend(rollback());
            because = because.or(Some(self.in_words(p, f)));
        }

        // Does what is left hang together?
        let last_part = beats.clone().filter_map(part).max();
        let is_young = |i: &usize| part(*i) == last_part;
        let newest = beats.clone().find(is_young).unwrap_or(0);
        let gone = |i: usize| match part(i).and(part(newest)) {
            Some(_) => forgotten(i, newest),
            None => Forgotten::No,
        };
        let mut own = vec![true; self.count()];
        let mut must = own.clone();
        if words.count > 0 {
            own = beats.clone().map(|i| gone(i) != Forgotten::Yes).collect();
            if !own.contains(&true) {
                own.fill(true);
            }
            must = beats.clone().map(|i| own[i] && gone(i) == Forgotten::No).collect();
        }
        if !self.is_joined(&own, &must) {
            reasons.insert(Reason::NotJoined);
        }
        for (j, word) in words.all.iter().enumerate() {
            let ties = |b: usize| {
                let of = move |x: usize| {
                    part(x).is_some_and(|x| x <= j)
                        && part(b).is_some_and(|b| j < b)
                        && (word.first..=word.last).contains(&self.beat(x).number)
                };
                self.vouches_for(b).any(of)
            };
            if !beats.clone().any(ties) {
                reasons.insert(Reason::NotJoined);
            }
        }
        if words.count > 0 && last_part.is_some_and(|last| last < words.count) {
            reasons.insert(Reason::Silence);
        }

        let own_beats = || beats.clone().filter(|i| own[*i]);
        self.liveness(own_beats(), writers, &mut reasons);
        if words.count > 0 {
            let young = self.advanced(beats.clone().filter(is_young), |_| ());
            for writer in (0..writers).filter(|w| young.get(&((), *w)).is_none_or(|(a, b)| a == b))
            {
                reasons.insert(Reason::WriterIdle { writer, epoch: None });
            }
        }
        self.phases(&own, writers, &mut reasons);

        let ends: BTreeSet<u32> = own_beats()
            .filter(|i| self.beat(*i).kind == said::Kind::Ended)
            .map(|i| u32::from(self.beat(i).writer))
            .collect();
        let ended = ends.len() >= writers as usize;
        let (alive, until_us) = match ended {
            true => (true, None),
            false => self.alive_at_the_end(&own),
        };
        if !alive {
            reasons.insert(Reason::Silence);
        }
        let mut watermarks = vec![0; writers as usize];
        for i in own_beats() {
            let Beat { writer, watermark, .. } = self.beat(i);
            if let Some(most) = watermarks.get_mut(*writer as usize) {
                *most = (*most).max(*watermark);
            }
        }
        let verdict = if !kinds.is_empty() {
            Verdict::Wrong
        } else if !reasons.is_empty() {
            Verdict::Inconclusive
        } else {
            Verdict::Proven
        };
        Ruling {
            tag,
            verdict,
            restored: words.count > 0 && kinds.is_empty(),
            kinds,
            because,
            reasons,
            ended,
            watermarks,
            until_us,
            collectors: collectors.clone(),
            weak: start.is_some_and(|start| start.weak),
        }
    }

    /// Words part what their collector heard. A collector counts, as long as its host is up, only if
    /// it was told of every restore.
    fn words(&self) -> Words {
        let mut told = BTreeMap::<(Name, Boot), Vec<_>>::new();
        for Told { session, line, at_us, what } in &self.run.words {
            let opening = self.books.sessions[*session as usize].opening.as_ref();
            let Some(opening) = opening else { continue };
            let at = opening.boot_us.saturating_add(*at_us);
            let whose = (opening.collector.clone(), opening.boot);
            told.entry(whose).or_default().push((at, *session, *line, *what));
        }
        let mut most = BTreeMap::<Restored, usize>::new();
        for words in told.values_mut() {
            words.sort_by_key(|(at, session, line, _)| {
                (*at, self.books.sessions[*session as usize].id, *line)
            });
            let mut here = BTreeMap::<Restored, usize>::new();
            for (.., what) in &*words {
                *here.entry(*what).or_default() += 1;
            }
            for (what, count) in here {
                let most = most.entry(what).or_default();
                *most = count.max(*most);
            }
        }
        let count = most.values().sum();
        let all = told.values().find(|words| words.len() == count);
        let all = all.into_iter().flatten().map(|(.., what)| *what).collect();
        Words { told, count, all }
    }

    /// How many words stand before a beat was first heard; `None` where nobody can say.
    fn part(&self, i: usize, words: &Words) -> Option<usize> {
        let of = |heard: &Heard| {
            let opening = self.books.sessions[heard.session as usize].opening.as_ref()?;
            let told = words.told.get(&(opening.collector.clone(), opening.boot))?;
            let at = opening.boot_us.saturating_add(heard.at_us);
            let before = |(told_at, session, line, _): &&WordHeard| match *session == heard.session
            {
                true => (*told_at, *line) < (at, u64::from(heard.line)),
                false => *told_at <= at,
            };
            (told.len() == words.count).then(|| told.iter().filter(before).count())
        };
        self.hearings(i).iter().filter_map(of).min()
    }

    /// Pairs of beats that cannot be of one guest, whatever is missing; the lower number first.
    fn contradictions(&self) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        let mut most = HashMap::<u16, (u64, Vec<u32>)>::new();
        let mut inversions = 0;
        for b in 0..self.count() {
            let beat = self.beat(b);
            let same =
                (0..b).rev().take(CONTENTS_MAX).take_while(|x| self.beat(*x).number == beat.number);
            pairs.extend(same.map(|x| (x, b)));
            for (number, bits) in self.links(b) {
                let at = self.at(number, b);
                let differs = |x: &usize| self.beat(*x).bits as u16 != bits;
                pairs.extend(at.filter(differs).map(|x| (x, b)));
            }
            let (highest, earlier) = most.entry(beat.writer).or_default();
            if beat.watermark < *highest && inversions < INVERSIONS_MAX {
                let above = |x: &&u32| {
                    let x = self.beat(**x as usize);
                    x.watermark > beat.watermark && x.number < beat.number
                };
                let found = earlier.iter().rev().filter(above).take(INVERSIONS_OF_ONE_MAX);
                let before = pairs.len();
                pairs.extend(found.map(|x| (*x as usize, b)));
                inversions += pairs.len() - before;
            }
            *highest = beat.watermark.max(*highest);
            earlier.push(b as u32);
        }
        pairs
    }

    /// FORK, ROLLBACK or both, by the clock of a boot that heard both sides; `None` where a line that is
    /// missing may be the word that explains it.
    fn weigh(&self, pairs: &[(usize, usize)], told: bool) -> Option<BTreeSet<Kind>> {
        let torn = self.lost || self.holes.iter().any(Option::is_some);
        let both = BTreeSet::from([Kind::Fork, Kind::Rollback]);
        let sessions = 0..self.books.sessions.len() as u32;
        let boots: BTreeSet<Boot> = sessions.filter_map(|session| self.boot_of(session)).collect();
        let (mut kinds, mut sure, mut doubt) = (BTreeSet::new(), false, false);
        for boot in boots {
            let mine: Vec<(usize, usize, u64)> = pairs
                .iter()
                .filter_map(|(x, b)| {
                    let (at_x, at_b) = (self.first_heard(*x, boot)?, self.first_heard(*b, boot)?);
                    Some(if at_x <= at_b { (*x, *b, at_b) } else { (*b, *x, at_x) })
                })
                .collect();
            if mine.is_empty() {
                continue;
            }
            if mine.iter().all(|(x, b, _)| self.is_excused(*x, *b, boot)) {
                doubt = true;
                continue;
            }
            sure = true;
            let last = self.line_ends(boot);
            let over = mine.iter().map(|(x, b, both_heard)| {
                i128::from(last[*x].min(last[*b])) - i128::from(*both_heard)
            });
            let (over, late) = (over.max().unwrap_or(0), i128::from(self.late_us(boot)));
            if torn || (-late..=late).contains(&over) {
                kinds.extend(both.clone());
            } else if over > late {
                kinds.insert(Kind::Fork);
            } else {
                kinds.insert(Kind::Rollback);
            }
        }
        match (sure, doubt || told || torn) {
            (true, _) => Some(kinds),
            (false, true) => None,
            // No one clock heard both sides, and nothing is missing.
            (false, false) => Some(both),
        }
    }

    /// Whether a line that is missing may have said "restored" between two beats.
    fn is_excused(&self, x: usize, b: usize, boot: Boot) -> bool {
        let may_have = |(session, hole): (u32, &Option<u64>)| {
            let Some(hole) = hole else { return false };
            if self.boot_of(session) != Some(boot) {
                return true;
            }
            match (self.first_line(x, session), self.first_line(b, session)) {
                (Some(x), Some(b)) => *hole < x.max(b),
                _ => true,
            }
        };
        self.lost || (0..).zip(self.holes).any(may_have)
    }

    /// Until when the line of each beat was heard in a boot: what vouches for it, step by step.
    fn line_ends(&self, boot: Boot) -> Vec<u64> {
        let heard: Vec<Option<u64>> =
            (0..self.count()).map(|i| self.first_heard(i, boot)).collect();
        let mut last: Vec<u64> = heard.iter().map(|at| at.unwrap_or(0)).collect();
        for b in (0..self.count()).rev().filter(|b| heard[*b].is_some()) {
            for x in self.vouches_for(b).filter(|x| heard[*x].is_some()) {
                last[x] = last[x].max(last[b]);
            }
        }
        last
    }

    /// The last watermark of a stun and the first one after it, of one writer, that differ though the
    /// one is known to follow the other.
    fn unequal(&self) -> Option<(usize, usize)> {
        #[derive(Clone, Copy)]
        struct Span {
            first: usize,
            last: usize,
            follows_held: bool,
        }
        let mut spans = BTreeMap::<(u32, u16), Span>::new();
        let mut begins = BTreeMap::<u32, u64>::new();
        for i in 0..self.count() {
            let beat = self.beat(i);
            begins.entry(beat.epoch).or_insert(beat.number);
            let span = spans.entry((beat.epoch, beat.writer));
            let span = span.or_insert(Span { first: i, last: i, follows_held: false });
            span.last = i;
            let held = |x: usize| self.beat(x).kind == said::Kind::Held;
            span.follows_held = span.follows_held || self.vouches_for(i).any(held);
        }
        let epochs: Vec<u32> = begins.keys().copied().collect();
        for pair in epochs.windows(2) {
            let (before, after) = (pair[0], pair[1]);
            let alone = |number: u64| {
                let at = self.at(number, self.count() - 1);
                (at.len() == 1).then(|| self.beat(at.start))
            };
            let follows = begins[&after].checked_sub(1).is_some_and(|number| {
                let at = self.at(number, self.count() - 1);
                !at.is_empty() && at.into_iter().all(|i| self.beat(i).kind == said::Kind::Held)
            });
            for ((_, writer), old) in spans.range((before, 0)..=(before, u16::MAX)) {
                let Some(new) = spans.get(&(after, *writer)) else { continue };
                let (p, f) = (self.beat(old.last), self.beat(new.first));
                if p.kind != said::Kind::Held || !new.follows_held || !follows {
                    continue;
                }
                let between = |number| {
                    alone(number).is_some_and(|x| x.epoch == after || x.kind == said::Kind::Held)
                };
                let whole = alone(p.number).is_some()
                    && alone(f.number).is_some()
                    && (p.number + 1..f.number).all(between);
                if whole && p.watermark != f.watermark {
                    return Some((old.last, new.first));
                }
            }
        }
        None
    }

    /// One line: what its last beats vouch for, step by step, is all of it, but for crumbs.
    fn is_joined(&self, own: &[bool], must: &[bool]) -> bool {
        let mut best = vec![false; self.count()];
        let mut reached = 0;
        // Of one number in the order of their bits, the last numbers first.
        let mut tips: Vec<usize> = (0..self.count()).rev().filter(|i| own[*i]).take(4096).collect();
        tips.sort_by_key(|i| (std::cmp::Reverse(self.beat(*i).number), *i));
        for tip in tips.into_iter().take(self.limits.near as usize) {
            if best[tip] {
                continue;
            }
            let mut seen = vec![false; self.count()];
            seen[tip] = true;
            let mut count = 0;
            for i in (0..=tip).rev() {
                if !seen[i] {
                    continue;
                }
                count += 1;
                for x in self.vouches_for(i).filter(|x| own[*x]) {
                    seen[x] = true;
                }
            }
            if count > reached {
                (best, reached) = (seen, count);
            }
        }
        let vouched: Vec<usize> = (0..self.count()).filter(|i| best[*i] && must[*i]).collect();
        let crumb = |i: &usize| must[*i] && !best[*i];
        !vouched.is_empty() && (0..self.count()).filter(crumb).all(|i| self.is_borne(i, &vouched))
    }

    /// Whether a beat that nothing vouches for lies close among those that are vouched for, by number
    /// and, where one boot can say, by time.
    fn is_borne(&self, i: usize, vouched: &[usize]) -> bool {
        let number = self.beat(i).number;
        let after = vouched.partition_point(|x| self.beat(*x).number <= number);
        let left = after.checked_sub(1).map(|x| self.beat(vouched[x]).number);
        let right = vouched.get(after).map(|x| self.beat(*x).number);
        if right.unwrap_or(number) - left.unwrap_or(number) > self.limits.near {
            return false;
        }
        let neighbours = |number: Option<u64>| {
            let number = number.unwrap_or(u64::MAX);
            let begin = vouched.partition_point(|x| self.beat(*x).number < number);
            vouched[begin..].iter().take_while(move |x| self.beat(**x).number == number)
        };
        let boots = |x: usize| {
            let boots: BTreeSet<Boot> =
                self.hearings(x).iter().filter_map(|h| self.boot_of(h.session)).collect();
            boots
        };
        let mine = boots(i);
        let in_time = |x: usize, later: bool| {
            boots(x).intersection(&mine).all(|boot| {
                let (from, to) = if later { (x, i) } else { (i, x) };
                let first = self.first_heard(from, *boot).unwrap_or(0);
                let last = self.last_heard(to, *boot).unwrap_or(0);
                last.saturating_add(self.late_us(*boot)) >= first
            })
        };
        let right = right.or(Some(number));
        neighbours(left).all(|x| in_time(*x, true)) && neighbours(right).all(|x| in_time(*x, false))
    }

    /// Least and greatest watermark of each writer in each group of beats.
    fn advanced<K: Ord>(
        &self,
        beats: impl Iterator<Item = usize>,
        group: impl Fn(usize) -> K,
    ) -> BTreeMap<(K, u32), (u64, u64)> {
        let mut advanced = BTreeMap::new();
        for i in beats {
            let Beat { writer, watermark, .. } = self.beat(i);
            let (least, most) =
                advanced.entry((group(i), u32::from(*writer))).or_insert((*watermark, *watermark));
            *least = (*least).min(*watermark);
            *most = (*most).max(*watermark);
        }
        advanced
    }

    /// Every writer in every epoch.
    fn liveness(
        &self,
        own: impl Iterator<Item = usize>,
        writers: u32,
        reasons: &mut BTreeSet<Reason>,
    ) {
        let advanced = self.advanced(own, |i| self.beat(i).epoch);
        let epochs: BTreeSet<u32> = advanced.keys().map(|(epoch, _)| *epoch).collect();
        if let Some((epoch, _)) = (0..).zip(&epochs).find(|(wanted, epoch)| *wanted != **epoch) {
            reasons.insert(Reason::EpochUnheard { epoch });
        }
        for epoch in epochs {
            let moved = |writer| advanced.get(&(epoch, writer)).is_some_and(|(a, b)| a < b);
            for writer in (0..writers).filter(|writer| !moved(*writer)) {
                reasons.insert(Reason::WriterIdle { writer, epoch: Some(epoch) });
            }
        }
    }

    /// Every writer in every phase that was told to a collector.
    fn phases(&self, own: &[bool], writers: u32, reasons: &mut BTreeSet<Reason>) {
        let mut marks = BTreeMap::<Boot, Vec<(u64, &Name)>>::new();
        for Told { session, at_us, what, .. } in &self.books.marks {
            if let Some((boot, at)) = self.moment(*session, *at_us) {
                marks.entry(boot).or_default().push((at, what));
            }
        }
        let mut unseen: BTreeSet<&Name> = self.books.marks.iter().map(|told| &told.what).collect();
        for (boot, mut marks) in marks {
            marks.sort_unstable();
            let phase = |i: usize| {
                let at = self.first_heard(i, boot)?;
                marks.partition_point(|(from, _)| *from <= at).checked_sub(1)
            };
            let heard = (0..self.count()).filter(|i| own[*i] && phase(*i).is_some());
            let advanced = self.advanced(heard, phase);
            for (place, (_, name)) in marks.iter().enumerate() {
                let moved = |writer| {
                    advanced.get(&(Some(place), writer)).is_some_and(|(least, most)| least < most)
                };
                if (0..writers).all(moved) {
                    unseen.remove(name);
                }
            }
        }
        reasons.extend(unseen.into_iter().map(|phase| Reason::PhaseIdle { phase: phase.clone() }));
    }

    /// Whether the run was heard to go on until each session that heard one of its last beats was
    /// closed; and until when it was heard, by the wall clock.
    fn alive_at_the_end(&self, own: &[bool]) -> (bool, Option<u64>) {
        let Some(last) = (0..self.count()).rev().find(|i| own[*i]).map(|i| self.beat(i)) else {
            return (false, None);
        };
        // Of several beats of the last number any that is not held will do.
        let first_of_last = (0..self.count()).rev().filter(|i| own[*i]);
        let last_kind = first_of_last
            .take_while(|i| self.beat(*i).number == last.number)
            .last()
            .map_or(last.kind, |i| self.beat(i).kind);
        let interval = self.run.start.as_ref().map_or(0, |start| start.interval_us);
        let beats = interval.saturating_mul(self.limits.quiet_beats);
        let quiet = self.limits.quiet_us.max(beats);
        // By session: the last number heard, and when any was heard last.
        let mut heard = BTreeMap::<u32, (u64, u64)>::new();
        for i in (0..self.count()).filter(|i| own[*i]) {
            for hearing in self.hearings(i) {
                let (number, at) = heard.entry(hearing.session).or_default();
                *number = (*number).max(self.beat(i).number);
                *at = (*at).max(hearing.at_us);
            }
        }
        heard.retain(|_, (number, _)| last.number - *number < self.limits.near);
        let mut until = None;
        let mut alive = last_kind == said::Kind::Running && !heard.is_empty();
        for (place, (_, at)) in heard {
            let session = &self.books.sessions[place as usize];
            let close = match session.close {
                Some((_, close)) => Some(close),
                None => session.held.then_some(session.last_us),
            };
            alive &= close.is_some_and(|close| close.saturating_sub(at) <= quiet);
            let wall = session.opening.as_ref().map(|opening| opening.wall_us.saturating_add(at));
            until = until.max(wall);
        }
        (alive, until)
    }

    fn in_words(&self, x: usize, b: usize) -> String {
        let said = |i: usize| {
            let Beat { number, epoch, writer, watermark, .. } = self.beat(i);
            let heard = self.hearings(i).first();
            let by = heard.map_or_else(String::new, |heard| {
                let session = &self.books.sessions[heard.session as usize];
                let name = session.opening.as_ref();
                let name = name.map_or_else(String::new, |o| format!("{} ", o.collector));
                format!(" (heard by {name}in session {} line {})", session.id, heard.line)
            });
            format!("beat {number} of epoch {epoch}, writer {writer} at {watermark}{by}")
        };
        format!("{} and {} cannot be of one guest", said(x), said(b))
    }
}

/// Whether a beat of a number was left behind by words that follow it.
fn forgotten(number: u64, words: &[Restored]) -> Forgotten {
    let mut forgotten = Forgotten::No;
    for word in words {
        if number > word.last {
            return Forgotten::Yes;
        }
        if number > word.first {
            forgotten = Forgotten::Perhaps;
        }
    }
    forgotten
}

/// The first index that `before` does not hold for.
fn partition(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        match before(middle) {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}
