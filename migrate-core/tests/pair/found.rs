//! The walk finds every mutant, each with the violation that it stands for and within bounds that
//! just suffice to show it.

use crate::explorer::Walk;
use crate::mutants::Mutant;
use crate::world::Violation::{self, Lost, Rollback, TwoRun};
use crate::world::{Crash, Left, NONE, RULES, Rules};

fn find(mutant: Mutant, crash: Crash, left: Left, expected: &[Violation]) {
    let power = matches!(mutant, Mutant::BootIsForgotten | Mutant::FailedSyncIsForgotten);
    let rules = Rules { crash, power, left, mutant: Some(mutant), ..RULES };
    let walk = Walk::new(rules, true);
    let found: Vec<_> = walk.violations.iter().collect();
    for (violation, (_, at)) in &found {
        println!(
            "{mutant:?}: {violation:?} after {} states, {:.1} s",
            walk.states,
            walk.time.as_secs_f64()
        );
        if std::env::var("VMIGRATE_PAIR_CHARTS").is_ok() {
            println!("{}", walk.chart(*at));
        }
        assert!(expected.contains(violation), "{mutant:?}\n{}", walk.chart(*at));
    }
    assert!(!found.is_empty(), "{mutant:?} is not found in {}", walk.summary());
}

#[test]
fn of_records() {
    let crash = Left { cuts: 1, crashes: 1, ..NONE };
    let sync = Left { syncs: 1, crashes: 1, ..NONE };
    let word = Left { words: 1, crashes: 1, cuts: 1, ..NONE };
    find(Mutant::CommittedLater, Crash::Outlives, crash, &[TwoRun, Rollback]);
    find(Mutant::FailedIsWritten, Crash::Outlives, sync, &[TwoRun, Rollback]);
    find(Mutant::TakenBackNever, Crash::Outlives, sync, &[TwoRun]);
    find(Mutant::TakenBackNever, Crash::Outlives, word, &[TwoRun]);
    find(Mutant::TakenBackLater, Crash::Outlives, word, &[TwoRun]);
    let untrue = [Violation::Untrue("Refused"), Violation::Untrue("prepared"), TwoRun];
    find(Mutant::OpeningLater, Crash::Dies, crash, &untrue);
    find(Mutant::OpeningIsRunning, Crash::Dies, crash, &[Violation::Untrue("ran here")]);
    find(Mutant::OpeningIsRunning, Crash::Outlives, word, &[TwoRun, Rollback]);
    find(Mutant::HolderForgets, Crash::Stops, crash, &untrue);
    find(Mutant::BootIsForgotten, Crash::Dies, crash, &untrue);
    let refusal = Left { syncs: 1, crashes: 1, words: 1, ..NONE };
    find(Mutant::FailedSyncIsForgotten, Crash::Dies, refusal, &untrue);
    let again = Left { agains: 1, crashes: 1, ..NONE };
    find(Mutant::AgainKeepsPrepared, Crash::Outlives, again, &untrue);
}

#[test]
fn of_the_lease() {
    let words = Left { cuts: 1, words: 1, ..NONE };
    find(Mutant::LeaseIsIgnored, Crash::Dies, words, &[TwoRun]);
    find(Mutant::LeaseBeforeRecord, Crash::Dies, words, &[TwoRun]);
    find(Mutant::GuardOfNone, Crash::Dies, words, &[TwoRun]);
    find(Mutant::GuardOfOne, Crash::Dies, words, &[TwoRun]);
    find(Mutant::ClockStands, Crash::Dies, words, &[TwoRun]);
    let cuts = Left { cuts: 2, words: 1, ..NONE };
    find(Mutant::RunWithHello, Crash::Dies, cuts, &[TwoRun]);
    // Or the guest is refused that an oath had just let run.
    find(Mutant::AnsweredEarly, Crash::Dies, cuts, &[TwoRun, Lost]);
    find(Mutant::CommitsEarly, Crash::Dies, words, &[TwoRun]);
    let again = Left { cuts: 1, agains: 1, ..NONE };
    find(Mutant::AgainEarly, Crash::Dies, again, &[Rollback]);
    find(Mutant::OneLease, Crash::Dies, cuts, &[TwoRun]);
    let restart = Left { crashes: 1, words: 1, ..NONE };
    find(Mutant::RestartForgetsRun, Crash::Outlives, restart, &[TwoRun]);
    find(Mutant::LostIsRefused, Crash::Dies, Left { cuts: 1, ..NONE }, &[TwoRun, Rollback]);
}

#[test]
fn of_operators() {
    let words = Left { cuts: 1, words: 1, ..NONE };
    let both = Left { cuts: 1, words: 1, crashes: 1, ..NONE };
    find(Mutant::SourceRunsUnseen, Crash::Dies, words, &[TwoRun, Rollback]);
    find(Mutant::SourceRunsNotNow, Crash::Dies, both, &[Rollback]);
    find(Mutant::LookedBefore, Crash::Dies, words, &[TwoRun, Rollback]);
    find(Mutant::GoneSinceRun, Crash::Dies, Left { cuts: 2, words: 2, ..NONE }, &[TwoRun]);
    find(Mutant::GoneIsDown, Crash::Outlives, both, &[TwoRun, Rollback]);
    find(Mutant::GoneIsDown, Crash::Dies, both, &[TwoRun, Rollback]);
    find(Mutant::GoneIsNotNow, Crash::Dies, words, &[TwoRun]);
    find(Mutant::GoneRanOn, Crash::Dies, both, &[Rollback]);
    let words = Left { cuts: 1, words: 2, ..NONE };
    find(Mutant::SourceDrops, Crash::Dies, words, &[Lost, TwoRun]);
}

/// Not fatal, as the rules say: an outdated copy is left, and nothing runs that must not.
#[test]
fn that_are_harmless() {
    let left = Left { cuts: 1, crashes: 1, words: 1, ..NONE };
    let mutant = Some(Mutant::DoesNotWithdraw);
    let walk = Walk::new(Rules { left, mutant, ..RULES }, false);
    println!("{mutant:?}: {}", walk.summary());
    assert!(walk.violations.is_empty());
}
