//! A judge written straight from the rules of docs/verification.md: every pair, every place, no index.

use std::collections::{BTreeMap, BTreeSet};

use verifier::law::{Kind, Reason};
use verifier::verdict::Verdict;
use workload::beat::said::{Beat, Kind as Motion, Said, Start, Tag, unsealed};
use workload::beat::session::{Entry, Line, Name, Opening, Restored, SessionId};

use crate::world::{INTERVAL_US, LATE, QUIET, linked};

pub(crate) const NEAR: u64 = 16;

/// A judge that gets one thing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    None,
    OrderMatters,
    RebootJoined,
    SilenceForgiven,
    MissingWordIsWrong,
    LinksUnseen,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    pub(crate) kinds: BTreeSet<Kind>,
    pub(crate) reasons: BTreeSet<Reason>,
    pub(crate) watermarks: Vec<u64>,
}

#[derive(Default)]
struct Session {
    lines: BTreeMap<u64, (u64, Entry)>,
}

impl Session {
    fn opening(&self) -> Option<&Opening> {
        self.lines.values().find_map(|(_, entry)| match entry {
            Entry::Open(opening) => Some(opening),
            _ => None,
        })
    }
    fn close(&self) -> Option<(u64, u64)> {
        self.lines.values().find_map(|(at, entry)| match entry {
            Entry::Close(lines) => Some((*lines, *at)),
            _ => None,
        })
    }
}

type Place = (Option<u32>, u64, SessionId, u64);

struct Run<'a> {
    sessions: &'a BTreeMap<SessionId, Session>,
    holes: BTreeMap<SessionId, u64>,
    lost: bool,
    start: Option<Start>,
    heard: BTreeMap<Beat, Vec<Place>>,
    words: Vec<(Place, Restored)>,
    mutant: Mutant,
}

/// What the rules say; `None` where the texts cannot all be true.
pub(crate) fn judge(
    texts: &[String],
    expect: &[(Name, u64)],
    mutant: Mutant,
) -> Option<BTreeMap<Tag, Judged>> {
    let mut sessions = BTreeMap::<SessionId, Session>::new();
    let mut came = BTreeMap::<(SessionId, u64), u64>::new();
    for line in texts.iter().flat_map(|text| text.split_inclusive('\n')) {
        let Some(line) = line.strip_suffix('\n') else { continue };
        let Some(text) = unsealed(line.as_bytes()) else { continue };
        let Some(line) = Line::read(text) else { continue };
        let line = line.ok()?;
        let session = sessions.entry(line.session).or_default();
        let content = (line.at_us, line.entry);
        let order = came.len() as u64;
        came.entry((line.session, line.number)).or_insert(order);
        match session.lines.get(&line.number) {
            Some(before) if *before != content => return None,
            _ => drop(session.lines.insert(line.number, content)),
        }
    }
    let mut found = BTreeMap::<SessionId, u64>::new();
    for (id, lines) in sessions.values().filter_map(|s| s.opening()?.after) {
        let most = found.entry(id).or_default();
        *most = lines.max(*most);
    }
    let mut holes = BTreeMap::new();
    for (id, session) in &sessions {
        let last = *session.lines.keys().max().unwrap();
        let end = match (session.close(), found.get(id)) {
            (Some((lines, _)), _) if lines <= last => return None,
            (Some((lines, _)), _) => Some(lines),
            (None, Some(lines)) => Some((*lines).max(last + 1)),
            (None, None) => None,
        };
        let missing = |n: &u64| !session.lines.contains_key(n);
        let hole = (0..end.unwrap_or(last + 1)).find(missing).or(end.is_none().then_some(last + 1));
        if let Some(hole) = hole {
            holes.insert(*id, hole);
        }
    }
    let nameless = sessions.values().any(|session| session.opening().is_none());
    let mut lost = found.keys().any(|id| !sessions.contains_key(id));
    for (name, count) in expect {
        let there = sessions.values().filter(|s| s.opening().is_some_and(|o| o.collector == *name));
        lost |= (there.count() as u64) < *count;
    }
    let mut reasons = BTreeSet::new();
    if !holes.is_empty() || nameless {
        reasons.insert(Reason::Hole);
    }
    if lost {
        reasons.insert(Reason::Lost);
    }
    let mut runs = BTreeMap::<Tag, Run>::new();
    for (id, session) in &sessions {
        for (number, (at, entry)) in &session.lines {
            let boot = session.opening().map(|opening| opening.boot);
            let base = session.opening().map_or(0, |opening| opening.boot_us);
            let at = match mutant {
                Mutant::OrderMatters => came[&(*id, *number)] * INTERVAL_US,
                _ => base + at,
            };
            let place = (boot, at, *id, *number);
            let (tag, said) = match entry {
                Entry::Heard(tag, said) => (tag, Ok(said)),
                Entry::Restored(word) => (&word.tag, Err(word)),
                _ => continue,
            };
            let tag = if mutant == Mutant::RebootJoined { Tag(1) } else { *tag };
            let run = runs.entry(tag).or_insert_with(|| Run {
                sessions: &sessions,
                holes: holes.clone(),
                lost: lost || nameless,
                start: None,
                heard: BTreeMap::new(),
                words: Vec::new(),
                mutant,
            });
            match said {
                Ok(Said::Start(start)) => match &run.start {
                    Some(before) if *before != **start && mutant != Mutant::RebootJoined => {
                        return None;
                    }
                    _ => run.start = Some((**start).clone()),
                },
                Ok(Said::Beat(beat)) => run.heard.entry(*beat).or_default().push(place),
                Err(word) => run.words.push((place, *word)),
            }
        }
    }
    runs.retain(|_, run| !run.heard.is_empty());
    Some(runs.iter().map(|(tag, run)| (*tag, run.judge(reasons.clone()))).collect())
}

impl Run<'_> {
    fn beats(&self) -> Vec<Beat> {
        self.heard.keys().copied().collect()
    }

    fn at(&self, number: u64) -> Vec<Beat> {
        self.beats().into_iter().filter(|beat| beat.number == number).collect()
    }

    fn links(&self, beat: &Beat) -> Vec<(u64, u16)> {
        let links = linked(beat.number).into_iter().zip(beat.links);
        match self.mutant {
            Mutant::LinksUnseen => Vec::new(),
            _ => links.filter(|(_, bits)| *bits != 0).filter_map(|(n, b)| Some((n?, b))).collect(),
        }
    }

    /// Rule 6.
    fn vouched(&self, beat: &Beat) -> Vec<Beat> {
        let mut vouched = Vec::new();
        for (number, bits) in self.links(beat) {
            let same: Vec<Beat> =
                self.at(number).into_iter().filter(|x| x.bits as u16 == bits).collect();
            if let [one] = same[..] {
                vouched.push(one);
            }
        }
        vouched
    }

    fn name_of(&self, session: SessionId) -> Option<(Name, u32)> {
        let opening = self.sessions[&session].opening()?;
        Some((opening.collector.clone(), opening.boot))
    }

    fn first(&self, beat: &Beat, boot: u32) -> Option<u64> {
        self.heard[beat].iter().filter(|p| p.0 == Some(boot)).map(|p| p.1).min()
    }

    fn judge(&self, mut reasons: BTreeSet<Reason>) -> Judged {
        let beats = self.beats();
        if self.start.is_none() {
            reasons.insert(Reason::NoDescription);
        }
        let seen = beats.iter().map(|beat| u32::from(beat.writer)).max().unwrap() + 1;
        let writers = self.start.as_ref().map_or(seen, |start| start.spec.writers);
        let ties: Vec<(Beat, Beat)> =
            beats.iter().flat_map(|b| self.vouched(b).into_iter().map(|x| (*b, x))).collect();

        // Words (8, 9).
        let mut told = BTreeMap::<(Name, u32), Vec<(Place, Restored)>>::new();
        for (place, word) in &self.words {
            if let Some(whose) = self.name_of(place.2) {
                told.entry(whose).or_default().push((*place, *word));
            }
        }
        let mut all_words: Vec<Restored> = Vec::new();
        for words in told.values_mut() {
            words.sort_by_key(|(place, _)| (place.1, place.2, place.3));
            for (_, word) in &*words {
                let here = words.iter().filter(|(_, w)| w == word).count();
                while all_words.iter().filter(|w| *w == word).count() < here {
                    all_words.push(*word);
                }
            }
        }
        let count = all_words.len();
        let order: Vec<Restored> = told
            .values()
            .find(|words| words.len() == count)
            .map_or_else(Vec::new, |words| words.iter().map(|(_, word)| *word).collect());
        let part = |beat: &Beat| -> Option<usize> {
            let parts = self.heard[beat].iter().filter_map(|(_, at, session, line)| {
                let none = Vec::new();
                let words = match told.get(&self.name_of(*session)?) {
                    Some(words) => words,
                    None => &none,
                };
                let before = |(w, _): &&(Place, Restored)| match w.2 == *session {
                    true => (w.1, w.3) < (*at, *line),
                    false => w.1 <= *at,
                };
                (words.len() == count).then(|| words.iter().filter(before).count())
            });
            parts.min()
        };
        let parts: BTreeMap<Beat, Option<usize>> = beats.iter().map(|b| (*b, part(b))).collect();
        if count > 0 && parts.values().any(Option::is_none) {
            reasons.insert(Reason::NotToldThere);
        }
        for (_, word) in &self.words {
            if !self.at(word.last).iter().any(|x| x.bits == word.bits) {
                reasons.insert(Reason::BeatNotHeard);
            }
        }
        // 0 no, 1 perhaps, 2 yes
        let forgotten = |x: &Beat, b: &Beat| -> u8 {
            let (Some(from), Some(to)) = (parts[x], parts[b]) else { return 1 };
            let mut got = 0;
            for word in order.get(from..to).unwrap_or_default() {
                if x.number > word.last {
                    return 2;
                }
                if x.number > word.first {
                    got = 1;
                }
            }
            got
        };

        // Contradictions (7).
        let mut raw = Vec::new();
        for (i, b) in beats.iter().enumerate() {
            for x in &beats[..i] {
                if x.number == b.number {
                    raw.push((*x, *b));
                }
                if x.writer == b.writer && x.number < b.number && x.watermark > b.watermark {
                    raw.push((*x, *b));
                }
            }
            for (number, bits) in self.links(b) {
                raw.extend(
                    self.at(number).into_iter().filter(|x| x.bits as u16 != bits).map(|x| (x, *b)),
                );
            }
        }
        let mut kinds = BTreeSet::new();
        let mut pairs = raw.clone();
        let mut other = Vec::new();
        if count > 0 {
            pairs.retain(|(x, b)| match (parts[x], parts[b]) {
                (Some(p), Some(q)) if p > q => forgotten(b, x) == 0,
                _ => forgotten(x, b) == 0,
            });
            let spoiled: BTreeSet<Beat> =
                raw.iter().map(|(x, b)| if parts[b] < parts[x] { *b } else { *x }).collect();
            other = ties.iter().map(|(b, x)| (*x, *b)).collect();
            other.retain(|(x, b)| !spoiled.contains(x) && forgotten(x, b) == 2);
            let tied: BTreeSet<Beat> = other.iter().map(|(x, _)| *x).collect();
            if tied.len() < 2 {
                if tied.len() == 1 {
                    reasons.insert(Reason::WhichBeat);
                }
                other.clear();
            }
        }
        let torn = self.lost || !self.holes.is_empty();
        if !pairs.is_empty() {
            match self.weigh(&pairs, &ties, count > 0) {
                Some(found) => kinds.extend(found),
                None => drop(reasons.insert(Reason::Contradiction)),
            }
        }
        if !other.is_empty() {
            match self.weigh(&other, &ties, true) {
                None => drop(reasons.insert(Reason::Contradiction)),
                Some(_) if torn => kinds.extend([Kind::Fork, Kind::Rollback]),
                Some(_) if kinds.is_empty() => drop(kinds.insert(Kind::Rollback)),
                Some(_) => {}
            }
        }
        if self.unequal(&ties) {
            kinds.insert(Kind::Rollback);
            if torn {
                kinds.insert(Kind::Fork);
            }
        }

        // Joined (20).
        let last_part = parts.values().flatten().max().copied();
        let mut young: Vec<Beat> =
            beats.iter().filter(|b| parts[*b] == last_part).copied().collect();
        if young.is_empty() {
            young.clone_from(&beats);
        }
        let gone = |x: &Beat| match (parts[x], parts[&young[0]]) {
            (Some(_), Some(_)) => forgotten(x, &young[0]),
            _ => 0,
        };
        let mut own: Vec<Beat> = beats.iter().filter(|b| gone(b) != 2).copied().collect();
        if own.is_empty() {
            own.clone_from(&beats);
        }
        let must: BTreeSet<Beat> = own.iter().filter(|b| gone(b) == 0).copied().collect();
        if self.mutant != Mutant::LinksUnseen && !self.joined(&own, &must) {
            reasons.insert(Reason::NotJoined);
        }
        if self.mutant != Mutant::LinksUnseen {
            for (j, word) in order.iter().enumerate() {
                let across = |(b, x): &(Beat, Beat)| {
                    parts[x].is_some_and(|p| p <= j)
                        && parts[b].is_some_and(|p| j < p)
                        && (word.first..=word.last).contains(&x.number)
                };
                if !ties.iter().any(across) {
                    reasons.insert(Reason::NotJoined);
                }
            }
        }
        if count > 0 && last_part.is_some_and(|part| part < order.len().max(count)) {
            reasons.insert(Reason::Silence);
        }

        // Liveness (22, 23).
        let epochs: BTreeSet<u32> = own.iter().map(|b| b.epoch).collect();
        if let Some(epoch) = (0..*epochs.last().unwrap()).find(|e| !epochs.contains(e)) {
            reasons.insert(Reason::EpochUnheard { epoch });
        }
        let moved = |beats: &mut dyn Iterator<Item = &Beat>, writer: u32| {
            let marks: BTreeSet<u64> =
                beats.filter(|b| u32::from(b.writer) == writer).map(|b| b.watermark).collect();
            marks.len() > 1
        };
        for writer in 0..writers {
            for epoch in &epochs {
                if !moved(&mut own.iter().filter(|b| b.epoch == *epoch), writer) {
                    reasons.insert(Reason::WriterIdle { writer, epoch: Some(*epoch) });
                }
            }
            if count > 0 && !moved(&mut young.iter(), writer) {
                reasons.insert(Reason::WriterIdle { writer, epoch: None });
            }
        }

        // The end (24).
        let ends: BTreeSet<u16> =
            own.iter().filter(|b| b.kind == Motion::Ended).map(|b| b.writer).collect();
        if ends.len() < writers as usize
            && self.mutant != Mutant::SilenceForgiven
            && !self.alive(&own)
        {
            reasons.insert(Reason::Silence);
        }
        let watermarks = (0..writers)
            .map(|w| {
                own.iter()
                    .filter(|b| u32::from(b.writer) == w)
                    .map(|b| b.watermark)
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let verdict = match (kinds.is_empty(), reasons.is_empty()) {
            (false, _) => Verdict::Wrong,
            (true, false) => Verdict::Inconclusive,
            (true, true) => Verdict::Proven,
        };
        Judged { verdict, kinds, reasons, watermarks }
    }

    /// Rules 12 to 16.
    fn weigh(
        &self,
        pairs: &[(Beat, Beat)],
        ties: &[(Beat, Beat)],
        told: bool,
    ) -> Option<BTreeSet<Kind>> {
        let torn = self.lost || !self.holes.is_empty();
        let both = BTreeSet::from([Kind::Fork, Kind::Rollback]);
        let boots: BTreeSet<u32> =
            self.sessions.values().filter_map(|s| Some(s.opening()?.boot)).collect();
        let (mut kinds, mut sure, mut doubt) = (BTreeSet::new(), false, false);
        for boot in boots {
            let mut mine = Vec::new();
            for (x, b) in pairs {
                if let (Some(p), Some(q)) = (self.first(x, boot), self.first(b, boot)) {
                    mine.push(if p <= q { (*x, *b, q) } else { (*b, *x, p) });
                }
            }
            if mine.is_empty() {
                continue;
            }
            let excused = mine.iter().all(|(x, b, _)| self.excused(x, b, boot));
            if excused && self.mutant != Mutant::MissingWordIsWrong {
                doubt = true;
                continue;
            }
            sure = true;
            let mut last = BTreeMap::new();
            for beat in self.beats().iter().rev() {
                let Some(at) = self.first(beat, boot) else { continue };
                let of = ties.iter().filter(|(_, x)| x == beat).filter_map(|(z, _)| last.get(z));
                let until = of.fold(at, |until, at| until.max(*at));
                last.insert(*beat, until);
            }
            let over = mine.iter().map(|(x, b, at)| last[x].min(last[b]) as i64 - *at as i64).max();
            let over = over.unwrap();
            let late = LATE * INTERVAL_US as i64;
            match (torn, over > late, over < -late) {
                (false, true, _) => drop(kinds.insert(Kind::Fork)),
                (false, _, true) => drop(kinds.insert(Kind::Rollback)),
                _ => kinds.extend(both.clone()),
            }
        }
        match (sure, doubt || told || torn) {
            (true, _) => Some(kinds),
            (false, true) => None,
            (false, false) => Some(both),
        }
    }

    /// Rule 12.
    fn excused(&self, x: &Beat, b: &Beat, boot: u32) -> bool {
        let may_have = |(session, hole): (&SessionId, &u64)| {
            if self.sessions[session].opening().map(|o| o.boot) != Some(boot) {
                return true;
            }
            let line =
                |b: &Beat| self.heard[b].iter().filter(|p| p.2 == *session).map(|p| p.3).min();
            match (line(x), line(b)) {
                (Some(x), Some(b)) => *hole < x.max(b),
                _ => true,
            }
        };
        self.lost || self.holes.iter().any(may_have)
    }

    /// Rule 17.
    fn unequal(&self, ties: &[(Beat, Beat)]) -> bool {
        let beats = self.beats();
        let epochs: Vec<u32> =
            beats.iter().map(|b| b.epoch).collect::<BTreeSet<_>>().into_iter().collect();
        let writers: BTreeSet<u16> = beats.iter().map(|b| b.writer).collect();
        for pair in epochs.windows(2) {
            for writer in &writers {
                let of =
                    |epoch| beats.iter().filter(move |b| b.epoch == epoch && b.writer == *writer);
                let (Some(p), Some(f)) = (of(pair[0]).next_back(), of(pair[1]).next()) else {
                    continue;
                };
                let follows = |f: &Beat| ties.iter().any(|(b, x)| b == f && x.kind == Motion::Held);
                let before = beats.iter().filter(|b| b.epoch == pair[1]).map(|b| b.number).min();
                let before = before.unwrap().checked_sub(1).map(|n| self.at(n)).unwrap_or_default();
                let stun = !before.is_empty() && before.iter().all(|b| b.kind == Motion::Held);
                let only = |number: u64| match self.at(number)[..] {
                    [one] => Some(one),
                    _ => None,
                };
                let quiet =
                    |n| only(n).is_some_and(|b| b.epoch == pair[1] || b.kind == Motion::Held);
                if p.kind == Motion::Held
                    && of(pair[1]).any(follows)
                    && stun
                    && only(p.number).is_some()
                    && only(f.number).is_some()
                    && (p.number + 1..f.number).all(quiet)
                    && p.watermark != f.watermark
                {
                    return true;
                }
            }
        }
        false
    }

    /// Rule 20.
    fn joined(&self, own: &[Beat], must: &BTreeSet<Beat>) -> bool {
        let mut tips: Vec<Beat> = own.to_vec();
        tips.sort_by_key(|b| std::cmp::Reverse(b.number));
        tips.truncate(NEAR as usize);
        let mut best = BTreeSet::new();
        for tip in tips {
            if best.contains(&tip) {
                continue;
            }
            let (mut seen, mut next) = (BTreeSet::from([tip]), vec![tip]);
            while let Some(beat) = next.pop() {
                for x in self.vouched(&beat) {
                    if own.contains(&x) && seen.insert(x) {
                        next.push(x);
                    }
                }
            }
            if seen.len() > best.len() {
                best = seen;
            }
        }
        best.retain(|beat| must.contains(beat));
        let late = LATE * INTERVAL_US as i64;
        !best.is_empty()
            && must.iter().filter(|b| !best.contains(b)).all(|b| {
                let left = best.iter().filter(|x| x.number <= b.number).map(|x| x.number).max();
                let right = best.iter().filter(|x| x.number > b.number).map(|x| x.number).min();
                let (left, right) = (left.unwrap_or(b.number), right.unwrap_or(b.number));
                let times = |x: &Beat, boot: u32| -> Vec<i64> {
                    let places = self.heard[x].iter().filter(|p| p.0 == Some(boot));
                    places.map(|p| p.1 as i64).collect()
                };
                let in_order = |x: &Beat, z: &Beat| {
                    (0..2).all(|boot| {
                        match (times(x, boot).iter().min(), times(z, boot).iter().max()) {
                            (Some(x), Some(z)) => z - x >= -late,
                            _ => true,
                        }
                    })
                };
                right - left <= NEAR
                    && best.iter().filter(|x| x.number == left).all(|x| in_order(x, b))
                    && best.iter().filter(|x| x.number == right).all(|x| in_order(b, x))
            })
    }

    fn alive(&self, own: &[Beat]) -> bool {
        let last = own.iter().map(|b| b.number).max().unwrap();
        if own.iter().find(|b| b.number == last).unwrap().kind != Motion::Running {
            return false;
        }
        let mut asked = 0;
        for (id, session) in self.sessions {
            let mine: Vec<(u64, u64)> = own
                .iter()
                .flat_map(|b| self.heard[b].iter().map(|p| (b.number, *p)))
                .filter(|(_, p)| p.2 == *id)
                .map(|(number, p)| (number, session.lines[&p.3].0))
                .collect();
            let Some(number) = mine.iter().map(|(number, _)| *number).max() else { continue };
            if last - number >= NEAR {
                continue;
            }
            asked += 1;
            let heard = mine.iter().map(|(_, at)| *at).max().unwrap();
            match session.close() {
                Some((_, close)) if close - heard <= QUIET as u64 * INTERVAL_US => {}
                _ => return false,
            }
        }
        asked > 0
    }
}
