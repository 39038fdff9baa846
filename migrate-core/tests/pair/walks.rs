//! The walks: each of these bounds is exhausted, and in all of it at most one guest runs, nothing old
//! or torn does, answers are true, nobody is stranded, and who lost the guest says so.

use std::collections::BTreeMap;

use migrate_core::session::{destination, source};

use crate::explorer::Walk;
use crate::world::{Crash, Guest, Left, NONE, RULES, Rules, Violation, World};

/// Walks, and says what was walked.
fn walk(name: &str, rules: Rules) -> Walk {
    let walk = Walk::new(rules, false);
    println!("{name}: {}", walk.summary());
    if let Some((violation, (count, at))) = walk.violations.first_key_value() {
        panic!("{name}: {violation:?} in {count} states\n{}", walk.chart(*at));
    }
    for (what, list) in [("stranded", walk.stranded()), ("silent", walk.silent())] {
        if let Some(at) = list.first() {
            panic!("{name}: {} states {what}\n{}", list.len(), walk.chart(*at));
        }
    }
    if rules.left.words == 0 {
        let mut kinds = BTreeMap::new();
        for at in walk.waits_for_a_word() {
            let world = walk.world(at);
            assert!(needs_a_word(&world), "{name}: waits for a word\n{}", walk.chart(at));
            *kinds.entry(kind(&world)).or_insert(0) += 1;
        }
        for (kind, count) in kinds {
            println!("    waits for a word in {count} states: {kind}");
        }
    }
    walk
}

/// Where a word is needed though both engines live: nowhere else.
pub fn needs_a_word(world: &World) -> bool {
    let source = world.source.engine.as_ref().map(|engine| engine.state());
    let there = &world.there[usize::from(world.source.attempt)];
    let state = there.engine.as_ref().map(|engine| engine.state());
    match source {
        // Its guest died with its engine before the commit, and the destination may be prepared.
        Some(source::State::Resumed(_)) => world.source.guest == Guest::None,
        // The destination crashed around the gate, or lost a record together with its power.
        Some(source::State::Committed | source::State::Committing) => {
            let lost =
                world.rules.0.power && matches!(state, None | Some(destination::State::Dropped));
            // Refusing what is gone: it is not written, and then nobody can know.
            let doubtful = matches!(
                state,
                Some(destination::State::Doubtful | destination::State::Refusing(_))
            );
            there.copy.is_none() && (lost || doubtful)
        }
        _ => false,
    }
}

fn kind(world: &World) -> String {
    let word = |text: String| text.split(['(', ' ']).next().unwrap_or_default().to_owned();
    let source = world.source.engine.as_ref().map(|engine| word(format!("{:?}", engine.state())));
    let there = world.there[0].engine.as_ref();
    let there = there.map(|engine| word(format!("{:?}", engine.state())));
    format!(
        "source {} (guest {:?}), destination {}",
        source.unwrap_or_default(),
        world.source.guest,
        there.unwrap_or_else(|| "without a record".to_owned())
    )
}

#[test]
fn of_cuts_and_a_crash() {
    for crash in [Crash::Dies, Crash::Outlives, Crash::Stops] {
        let left = Left { cuts: 2, crashes: 1, agains: 1, ..NONE };
        walk(&format!("two cuts, a crash ({crash:?}), Again"), Rules { crash, left, ..RULES });
        let left = Left { cuts: 1, crashes: 2, ..NONE };
        walk(&format!("a cut, two crashes ({crash:?})"), Rules { crash, left, ..RULES });
    }
}

#[test]
fn of_words() {
    let left = Left { cuts: 2, words: 2, ..NONE };
    walk("two cuts, two words", Rules { left, ..RULES });
    let left = Left { cuts: 1, words: 2, agains: 1, ..NONE };
    walk("a cut, two words, Again", Rules { left, ..RULES });
}

#[test]
fn of_words_and_a_crash() {
    for crash in [Crash::Dies, Crash::Outlives] {
        let left = Left { cuts: 1, crashes: 1, words: 1, agains: 1, ..NONE };
        walk(&format!("a cut, a crash ({crash:?}), a word, Again"), Rules { crash, left, ..RULES });
    }
}

#[test]
fn of_disks() {
    for crash in [Crash::Dies, Crash::Outlives, Crash::Stops] {
        let left = Left { cuts: 1, crashes: 1, syncs: 1, agains: 1, ..NONE };
        let rules = Rules { crash, left, ..RULES };
        walk(&format!("a cut, a crash ({crash:?}), a failing sync, Again"), rules);
    }
    let left = Left { cuts: 1, syncs: 1, words: 2, ..NONE };
    walk("a cut, a failing sync, two words", Rules { left, ..RULES });
    let left = Left { cuts: 1, crashes: 1, syncs: 1, ..NONE };
    walk("a cut, lost power, a failing sync", Rules { left, power: true, ..RULES });
    let left = Left { crashes: 2, syncs: 3, ..NONE };
    let rules = Rules { left, crash: Crash::Outlives, ..RULES };
    walk("two crashes (Outlives), three failing syncs", rules);
    let left = Left { crashes: 1, words: 1, syncs: 1, ..NONE };
    walk("lost power, a word, a failing sync", Rules { left, power: true, ..RULES });
    let left = Left { cuts: 1, crashes: 1, words: 1, agains: 1, ..NONE };
    walk("a cut, lost power, a word, Again", Rules { left, power: true, ..RULES });
}

#[test]
fn of_hops_and_attempts() {
    let left = Left { cuts: 1, crashes: 1, hops: 1, ..NONE };
    walk("a cut, a crash, a hop", Rules { left, ..RULES });
    walk("a cut, a crash (Outlives), a hop", Rules { left, crash: Crash::Outlives, ..RULES });
    let left = Left { cuts: 1, attempts: 1, ..NONE };
    walk("a cut, a second attempt", Rules { left, ..RULES });
    let left = Left { cuts: 2, agains: 1, notes: 2, ..NONE };
    walk("two cuts, two notes, Again", Rules { left, ..RULES });
    let left = Left { cuts: 1, crashes: 1, setbacks: 1, ..NONE };
    walk("a cut, a crash, a setback", Rules { left, ..RULES });
}

/// The exception that is left: a stop of a link timeout between the look at the lease and the gate.
#[test]
fn of_the_gap_before_the_gate() {
    let left = Left { cuts: 1, words: 2, ..NONE };
    let walk = Walk::new(Rules { left, gap: true, ..RULES }, false);
    println!("time between look and gate: {}", walk.summary());
    assert_eq!(walk.violations.keys().collect::<Vec<_>>(), [&Violation::TwoRun]);
    for (_, at) in walk.violations.values() {
        assert!(walk.world(*at).gap, "{}", walk.chart(*at));
    }
}

fn all_at_once(crash: Crash) {
    let left = Left { cuts: 2, crashes: 1, words: 1, agains: 1, ..NONE };
    walk(&format!("two cuts, a crash ({crash:?}), a word, Again"), Rules { crash, left, ..RULES });
}

#[test]
fn of_all_at_once_where_the_guest_dies() {
    all_at_once(Crash::Dies);
}

#[test]
fn of_all_at_once_where_the_guest_goes_on() {
    all_at_once(Crash::Outlives);
}

/// Larger bounds, for `VMIGRATE_PAIR=long`.
#[test]
fn of_more() {
    if std::env::var("VMIGRATE_PAIR").is_ok_and(|form| form == "long") {
        all_at_once(Crash::Stops);
        for crash in [Crash::Dies, Crash::Outlives] {
            let left = Left { cuts: 1, crashes: 2, words: 2, ..NONE };
            let name = format!("a cut, two crashes ({crash:?}), two words");
            walk(&name, Rules { crash, left, ..RULES });
            let left = Left { cuts: 1, crashes: 1, words: 1, syncs: 1, ..NONE };
            let name = format!("a cut, a crash ({crash:?}), a word, a failing sync");
            walk(&name, Rules { crash, left, ..RULES });
            let left = Left { cuts: 1, crashes: 1, words: 1, hops: 1, ..NONE };
            let name = format!("a cut, a crash ({crash:?}), a word, a hop");
            walk(&name, Rules { crash, left, ..RULES });
        }
        let left = Left { cuts: 1, crashes: 1, words: 1, syncs: 1, ..NONE };
        walk("a cut, lost power, a word, a failing sync", Rules { left, power: true, ..RULES });
        let left = Left { words: 1, crashes: 1, attempts: 1, ..NONE };
        walk("a crash, a word, a second attempt", Rules { left, ..RULES });
    }
}
