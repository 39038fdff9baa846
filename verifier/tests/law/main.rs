//! The law of evidence over generated histories: what is good is never WRONG, what is not is never
//! PROVEN, less evidence is never better, and a slow judge of the tests' own says the same of each.
//!
//! `VMIGRATE_LAW_SEED` and `VMIGRATE_LAW_HISTORIES` choose others, and more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod slow;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use slow::{Judged, Mutant};
use verifier::law::{Demand, Kind, Limits, Reason, Ruling, judge};
use verifier::verdict::Verdict;
use workload::beat::books::Books;
use workload::beat::said::Tag;
use workload::beat::session::Name;
use world::{Collector, FAULTS, INTERVAL_US, LATE, MUTATIONS, QUIET, Step, World, mutated, script};

const LIMITS: Limits = Limits {
    near: slow::NEAR,
    quiet_us: QUIET as u64 * INTERVAL_US,
    quiet_beats: 0,
    late_us: Some(LATE as u64 * INTERVAL_US),
    linked: world::linked,
};

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// Each history has a generator of its own, whose seed a failure prints.
fn histories(usual: u64) -> impl Iterator<Item = (u64, SmallRng)> {
    let first = number("VMIGRATE_LAW_SEED", 1) << 32;
    let count = number("VMIGRATE_LAW_HISTORIES", usual);
    (first..first + count).map(|seed| (seed, SmallRng::seed_from_u64(seed)))
}

fn books(texts: &[String]) -> Option<Books> {
    let mut books = Books::default();
    for text in texts {
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        books.take(Path::new("journal"), 1, &text.as_bytes()[..whole]).ok()?;
    }
    books.settle().ok()?;
    Some(books)
}

fn rulings(texts: &[String], expect: &[(Name, u64)]) -> Option<BTreeMap<Tag, Ruling>> {
    let rulings = judge(&books(texts)?, &Demand(expect.to_vec()), &LIMITS);
    Some(rulings.into_iter().map(|ruling| (ruling.tag, ruling)).collect())
}

fn short(ruling: &Ruling) -> Judged {
    let Ruling { verdict, kinds, reasons, watermarks, .. } = ruling.clone();
    Judged { verdict, kinds, reasons, watermarks }
}

/// By the law and by the slow judge, which must agree.
#[track_caller]
fn judged(texts: &[String], expect: &[(Name, u64)], told: &str) -> Option<BTreeMap<Tag, Ruling>> {
    let fast = rulings(texts, expect);
    let slow = slow::judge(texts, expect, Mutant::None);
    let fast_short = fast.as_ref().map(|fast| {
        fast.iter().map(|(tag, ruling)| (*tag, short(ruling))).collect::<BTreeMap<_, _>>()
    });
    assert_eq!(fast_short, slow, "{told}");
    fast
}

/// Collectors and sessions that there are.
fn present(texts: &[String]) -> Vec<(Name, u64)> {
    let mut sessions = BTreeMap::new();
    for opening in books(texts).unwrap().sessions.iter().filter_map(|s| s.opening.as_ref()) {
        *sessions.entry(opening.collector.clone()).or_default() += 1;
    }
    sessions.into_iter().collect()
}

fn hear(world: &World, collectors: &[Collector], random: &mut SmallRng) -> Vec<String> {
    collectors.iter().map(|collector| collector.hear(world, random)).collect()
}

fn troubled(world: &World, random: &mut SmallRng) -> Vec<Collector> {
    let count = random.random_range(1..=3);
    ["a", "b", "c"][..count].iter().map(|name| Collector::troubled(name, world, random)).collect()
}

fn told_of_all(world: &World, texts: &[String]) -> bool {
    let books = books(texts).unwrap();
    let told: BTreeSet<_> =
        books.runs.values().flat_map(|run| run.words.iter().map(|told| told.what)).collect();
    told == world.words()
}

fn writers(random: &mut SmallRng) -> u32 {
    *[1, 1, 2].choose(random).unwrap()
}

#[test]
fn good_runs_are_proven() {
    let (mut lossy, mut proven) = (0, 0);
    for (seed, mut random) in histories(1000) {
        let random = &mut random;
        let script = script(None, random);
        let world = World::new(&script, random.random(), writers(random), true);
        let loss = *[0.0, 0.1].choose(random).unwrap();
        let delay = *[0, 2].choose(random).unwrap();
        let collector = Collector { loss, double: 0.1, delay, ..Collector::new("a") };
        let texts = hear(&world, &[collector], random);
        let told = format!("seed {seed} {script:?}");
        for (tag, ruling) in judged(&texts, &present(&texts), &told).unwrap() {
            assert_ne!(ruling.verdict, Verdict::Wrong, "{told} {ruling:?}");
            if world.is_short(tag) || world.is_faulty(tag) {
                continue;
            }
            let is_proven = ruling.verdict == Verdict::Proven;
            if loss > 0.0 {
                // The beat that a restore names may be among those that are lost.
                if world.words().is_empty() {
                    lossy += 1;
                    proven += u32::from(is_proven);
                }
            } else {
                assert!(is_proven, "{told} {ruling:?}");
            }
        }
    }
    println!("of {lossy} good runs of which a tenth of the beats were lost {proven} are PROVEN");
    assert!(f64::from(proven) >= 0.98 * f64::from(lossy), "{proven} of {lossy}");
}

#[test]
fn a_good_run_is_never_wrong_whatever_happens_to_what_is_heard() {
    let mut answers = BTreeMap::<Verdict, u32>::new();
    for (seed, mut random) in histories(1000) {
        let random = &mut random;
        let mut script = script(None, random);
        if random.random_bool(0.2) {
            script.extend([Step::Reset, Step::Run(9)]);
        }
        let world = World::new(&script, random.random(), writers(random), true);
        let texts = hear(&world, &troubled(&world, random), random);
        if !told_of_all(&world, &texts) {
            continue;
        }
        let told = format!("seed {seed} {script:?}");
        for (_, ruling) in judged(&texts, &present(&texts), &told).unwrap() {
            *answers.entry(ruling.verdict).or_default() += 1;
            assert_ne!(ruling.verdict, Verdict::Wrong, "{told} {ruling:?}");
        }
    }
    println!("good runs, heard badly: {answers:?}");
}

#[test]
fn a_fault_that_was_heard_is_never_proven() {
    for trouble in [false, true] {
        for (seed, mut random) in histories(800) {
            let random = &mut random;
            let fault = *FAULTS.choose(random).unwrap();
            let script = script(Some(fault), random);
            let world = World::new(&script, random.random(), writers(random), true);
            let collectors = match trouble {
                true => troubled(&world, random),
                false => vec![Collector::new("a")],
            };
            let texts = hear(&world, &collectors, random);
            let told = format!("seed {seed} {fault} {script:?}");
            for (tag, ruling) in judged(&texts, &present(&texts), &told).unwrap() {
                // Of what nobody heard nothing can be known.
                let proven = !trouble && ruling.verdict == Verdict::Proven;
                assert!(!(proven && world.is_faulty(tag)), "{told} {ruling:?}");
            }
        }
    }
}

/// One collector, nothing lost: the right kind, and alone where the lines are clearly apart.
#[test]
fn kinds_are_told_apart() {
    let kinds = [
        ("rollback", Kind::Rollback),
        ("twin", Kind::Fork),
        ("fork", Kind::Fork),
        ("old", Kind::Rollback),
        ("wrong", Kind::Rollback),
        ("twice", Kind::Rollback),
        ("after-end", Kind::Rollback),
    ];
    for (seed, mut random) in histories(1000) {
        let random = &mut random;
        let (fault, kind) = *kinds.choose(random).unwrap();
        let script = script(Some(fault), random);
        let world = World::new(&script, random.random(), 1, true);
        let delay = *[0, LATE].choose(random).unwrap();
        let texts = hear(&world, &[Collector { delay, ..Collector::new("a") }], random);
        let told = format!("seed {seed} {fault} {script:?}");
        let ruling = &judged(&texts, &[], &told).unwrap()[&Tag(1)];
        if fault == "wrong"
            && ruling.kinds.is_empty()
            && ruling.reasons.contains(&Reason::WhichBeat)
        {
            continue;
        }
        if !world.faults.get(&Tag(1)).is_some_and(|kinds| kinds.contains(&kind)) {
            // Nothing that had been said was lost.
            continue;
        }
        assert!(ruling.kinds.contains(&kind), "{told} {ruling:?}");
        assert!(ruling.because.is_some(), "{told}");
        let spans = world.spans();
        let clear =
            |a: &(i64, i64), b: &(i64, i64)| b.0 - a.1 > 2 * LATE || a.1.min(b.1) - b.0 > 2 * LATE;
        let clear =
            spans.iter().enumerate().all(|(i, a)| spans[i + 1..].iter().all(|b| clear(a, b)));
        assert!(!clear || ruling.kinds.len() == 1, "{told} {ruling:?}");
    }
}

/// Rule 0, and that order means nothing.
#[test]
fn less_evidence_is_never_better() {
    let (mut pairs, mut refused) = (0, 0);
    for (seed, mut random) in histories(800) {
        let random = &mut random;
        let fault = FAULTS.choose(random).copied().filter(|_| random.random_bool(0.7));
        let script = script(fault, random);
        let world = World::new(&script, random.random(), 1, true);
        let collectors = match random.random_bool(0.4) {
            true => vec![Collector::new("a")],
            false => troubled(&world, random),
        };
        let texts = hear(&world, &collectors, random);
        let expect = present(&texts);
        let told = format!("seed {seed} {fault:?} {script:?}");
        let all = judged(&texts, &expect, &told).unwrap();
        for _ in 0..12 {
            let how = *MUTATIONS.choose(random).unwrap();
            let (less, same) = mutated(&texts, how, random);
            let told = format!("{told} {how}");
            let Some(now) = judged(&less, &expect, &told) else {
                refused += 1;
                assert!(!same, "{told}: refused");
                continue;
            };
            pairs += 1;
            for (tag, before) in &all {
                let Some(after) = now.get(tag) else { continue };
                if same {
                    assert_eq!(short(after), short(before), "{told}");
                }
                let kept = after.verdict == before.verdict
                    && (after.verdict != Verdict::Wrong || after.kinds.is_superset(&before.kinds));
                let worse = after.verdict == Verdict::Inconclusive;
                assert!(kept || worse, "{told}: {before:?} -> {after:?}");
            }
        }
    }
    println!("{pairs} pairs of evidence and less of it, {refused} refused");
}

/// Memory of a guest that was killed, right or of an earlier moment.
#[test]
fn memory_is_judged_at_the_watermarks_that_it_shows() {
    for (seed, mut random) in histories(600) {
        let random = &mut random;
        let mut script = script(None, random);
        script.retain(|step| *step != Step::End);
        script.extend([Step::Kill, Step::Idle(5)]);
        let world = World::new(&script, random.random(), 1, true);
        let texts = hear(&world, &[Collector::new("a")], random);
        let expect = present(&texts);
        let (tag, mut shown) = world.shown();
        let old = random.random();
        if old {
            shown[0] = shown[0].saturating_sub(4);
        }
        let told = format!("seed {seed} {script:?}");
        let before = judged(&texts, &expect, &told).unwrap()[&tag].of_memory(&shown);
        let wanted = if old { Verdict::Wrong } else { Verdict::Proven };
        assert_eq!(before, wanted, "{told}");
        let (less, same) = mutated(&texts, MUTATIONS.choose(random).unwrap(), random);
        let Some(after) = judged(&less, &expect, &told) else { continue };
        let Some(after) = after.get(&tag).map(|ruling| ruling.of_memory(&shown)) else { continue };
        assert!(after == before || !same && after == Verdict::Inconclusive, "{told}: {after}");
    }
}

/// A guest that goes back while nobody hears it.
#[test]
fn a_rollback_that_nobody_heard_is_not_proven() {
    let mut answers = BTreeMap::<(bool, Verdict), u32>::new();
    for (seed, mut random) in histories(600) {
        let random = &mut random;
        let deep = random.random_range(1..=20);
        let more = *[0, 0, 1, 3, 10, 30].choose(random).unwrap();
        let script = [
            Step::Run(random.random_range(8..=30)),
            Step::Snapshot,
            Step::Run(deep),
            Step::Restore(world::Meant::No, random.random_range(0..=3)),
            Step::Run(deep + more + random.random_range(30..=120)),
        ];
        let world = World::new(&script, random.random(), 1, true);
        let back = world.second_line();
        let deaf = Some((back, back + deep + more));
        let texts = hear(&world, &[Collector { deaf, ..Collector::new("a") }], random);
        let ruling = &judged(&texts, &[], &format!("seed {seed}")).unwrap()[&Tag(1)];
        *answers.entry((deep <= 3, ruling.verdict)).or_default() += 1;
        let proven = ruling.verdict == Verdict::Proven;
        assert!(!proven || deep <= 3, "seed {seed}: {deep} beats deep, {ruling:?}");
    }
    println!("rollbacks that nobody heard, by whether they are at most 3 beats deep: {answers:?}");
}

#[test]
fn who_listens_on_hears_that_it_is_silent() {
    for (seed, mut random) in histories(100) {
        let random = &mut random;
        let script = [Step::Run(random.random_range(8..=30)), Step::Kill, Step::Idle(30)];
        let world = World::new(&script, random.random(), 1, true);
        let end = Some(world.last_beat() + *[1, 2, 5].choose(random).unwrap());
        let other = Collector {
            boot: random.random_range(0..2),
            loss: *[0.0, 0.1].choose(random).unwrap(),
            ..Collector::new("b")
        };
        let texts = hear(&world, &[Collector { end, ..Collector::new("a") }, other], random);
        let ruling = &judged(&texts, &present(&texts), &format!("seed {seed}")).unwrap()[&Tag(1)];
        assert_eq!(ruling.verdict, Verdict::Inconclusive, "seed {seed} {ruling:?}");
        // Alone, the one that closed before says until when it is proven.
        let alone = &judged(&texts[..1], &[], &format!("seed {seed}")).unwrap()[&Tag(1)];
        assert!(alone.verdict == Verdict::Proven && alone.until_us.is_some(), "{seed} {alone:?}");
    }
}

/// What a collector did not hear while it was started again was lost on the way.
#[test]
fn a_collector_started_again_in_its_file_leaves_no_hole() {
    let mut proven = 0;
    for (seed, mut random) in histories(100) {
        let random = &mut random;
        let world = World::new(&[Step::Run(60), Step::End], random.random(), 1, true);
        let from = random.random_range(5..=40);
        let cut = Some((from, from + random.random_range(1..=10)));
        let texts = hear(&world, &[Collector { cut, ..Collector::new("a") }], random);
        let ruling = &judged(&texts, &[], &format!("seed {seed}")).unwrap()[&Tag(1)];
        assert!(!ruling.reasons.contains(&Reason::Hole), "seed {seed} {ruling:?}");
        proven += u32::from(ruling.verdict == Verdict::Proven);
    }
    assert!(proven > 0);
}

/// What a judge may get wrong.
fn errors(
    world: &World,
    texts: &[String],
    others: &[(Vec<String>, bool)],
    mutant: Mutant,
) -> BTreeSet<&'static str> {
    let expect = present(texts);
    let mut errors = BTreeSet::new();
    let Some(all) = slow::judge(texts, &expect, mutant) else { return errors };
    for (tag, judged) in &all {
        match (world.is_faulty(*tag), judged.verdict) {
            (true, Verdict::Proven) => drop(errors.insert("a fault is PROVEN")),
            (false, Verdict::Wrong) => drop(errors.insert("a good run is WRONG")),
            _ => {}
        }
    }
    for (less, same) in others {
        let Some(now) = slow::judge(less, &expect, mutant) else { continue };
        for (tag, before) in &all {
            let Some(after) = now.get(tag) else { continue };
            if *same && after != before {
                errors.insert("another order, another verdict");
            }
            if after.verdict != Verdict::Inconclusive && after.verdict != before.verdict {
                errors.insert("less evidence is better");
            }
        }
    }
    errors
}

/// A judge that gets one thing wrong, and guests whose bits a copy draws again, are found out where the
/// law itself makes no error.
#[test]
fn mutants_of_the_law_are_found() {
    let mutants = [
        (Mutant::OrderMatters, true),
        (Mutant::RebootJoined, true),
        (Mutant::SilenceForgiven, true),
        (Mutant::MissingWordIsWrong, true),
        (Mutant::LinksUnseen, true),
        (Mutant::None, false),
    ];
    for (mutant, fresh) in mutants {
        let mut found = BTreeMap::<&str, u32>::new();
        let mut tried = 0;
        for (_, mut random) in histories(150) {
            let random = &mut random;
            let planted: Vec<_> =
                FAULTS.into_iter().chain(["again"]).map(Some).chain([None]).collect();
            let script = script(*planted.choose(random).unwrap(), random);
            let (seed, hearing, mutating): (u64, u64, u64) = random.random();
            let deaf = random.random_bool(0.3);
            let errors = |mutant, fresh| {
                let random = &mut SmallRng::seed_from_u64(hearing);
                let world = World::new(&script, seed, 1, fresh);
                let back = world.second_line();
                let deaf = deaf.then_some((back, back + 25));
                let delay = *[0, LATE].choose(random).unwrap();
                let texts =
                    hear(&world, &[Collector { deaf, delay, ..Collector::new("a") }], random);
                let random = &mut SmallRng::seed_from_u64(mutating);
                let others: Vec<_> = (0..8)
                    .map(|_| mutated(&texts, MUTATIONS.choose(random).unwrap(), random))
                    .collect();
                self::errors(&world, &texts, &others, mutant)
            };
            tried += 1;
            for error in errors(mutant, fresh).difference(&errors(Mutant::None, true)) {
                *found.entry(error).or_default() += 1;
            }
        }
        let bits = if fresh { "fresh" } else { "from a generator in memory" };
        println!("{mutant:?}, bits {bits}: of {tried} histories {found:?}");
        assert!(!found.is_empty(), "{mutant:?} {fresh}: not found");
    }
}
