//! Stuns that take longer than they may are called off: the guest runs on, and arrives whole later.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use migrate_core::Error;
use migrate_core::guest::stamped::StampedFactory;
use migrate_core::guest::stamped::proof::judge;
use migrate_core::guest::tracker::{self, TrackerKind};
use migrate_core::guest::{Guest, ShadowFactory};
use migrate_core::policy::PolicyKind;
use migrate_core::source::{self, Migrated, NotMigrated, OverLimit};
use support::{
    Quiet, Tamper, TamperedFactory, WatchedGuest, assert_healthy, guest, listener, receiver,
    settings, spec, testify,
};
use verifier::verdict::Verdict;

const RATE: u64 = 20_000_000;
const GOAL: Duration = Duration::from_millis(60);

/// Migrates under `policy` with stuns that may be called off; the receiver's shadow is `factory`'s.
fn migrate<F>(
    policy: PolicyKind,
    pauses: Vec<Duration>,
    factory: F,
    arrived: impl FnOnce(F::Shadow, &Migrated, Vec<u64>),
) -> Result<Migrated, Box<NotMigrated>>
where
    F: ShadowFactory + Send + 'static,
    F::Shadow: Send + 'static,
{
    let mut guest = guest(&spec(37), RATE);
    let (listener, address) = listener();
    let there = receiver(listener, factory);
    let mut settings = settings(address);
    (settings.policy, settings.over_limit, settings.limits.goal) =
        (policy, OverLimit::GoBack, GOAL);
    let mut tracker = tracker::open(TrackerKind::Auto, &guest.memory()).unwrap();
    let mut slow = WatchedGuest { inner: &mut guest, paused: Default::default(), pauses };
    let done = source::migrate(&mut slow, &mut *tracker, &settings, &mut Quiet::default());
    match (&done, there.join().unwrap()) {
        (Ok(done), Ok(there)) => arrived(there.guest, done, guest.watermarks()),
        (Err(_), Err(_)) => assert_healthy(&mut guest),
        (here, _) => panic!("the two sides do not agree: {here:?}"),
    }
    done
}

fn quick() -> Vec<Duration> {
    vec![Duration::from_millis(1); 10]
}

#[test]
fn a_stun_that_is_slow_once_is_called_off_once() {
    for policy in [PolicyKind::Adaptive, PolicyKind::Vmotion, PolicyKind::Precopy] {
        let pauses = [vec![2 * GOAL], quick()].concat();
        let done = migrate(policy, pauses, StampedFactory::default(), |shadow, _, stunned| {
            let testimony = testify(shadow);
            let proof = judge(37 << 14, vec![0; 2], stunned, None, Some(testimony));
            assert_eq!(proof.verdict, Verdict::Proven, "{:?}", proof.reasons);
        });
        let report = done.unwrap().report;
        assert_eq!(report.overruns.len(), 1, "{policy:?}");
        let took = report.overruns[0].took_ms;
        assert!(took >= 119.0, "{took} ms");
        assert!(report.decisions.iter().any(|d| d.what.contains("called off")), "{report:?}");
        assert!(report.guest_lost_ms() >= took, "what was called off is lost all the same");
    }
}

#[test]
fn a_destination_that_is_slow_once_receives_again() {
    let tamper = Tamper::SlowState(2 * GOAL);
    let factory = TamperedFactory { inner: StampedFactory::default(), tamper };
    let done = migrate(PolicyKind::Adaptive, quick(), factory, |shadow, done, stunned| {
        assert_eq!(done.report.overruns.len(), 1, "{:?}", done.report.decisions);
        let testimony = testify(shadow.inner);
        let proof = judge(37 << 14, vec![0; 2], stunned, None, Some(testimony));
        assert_eq!(proof.verdict, Verdict::Proven, "{:?}", proof.reasons);
    });
    assert!(!done.unwrap().report.over_goal);
}

#[test]
fn stuns_that_are_always_slow_end_the_attempt_and_not_the_guest() {
    for policy in [PolicyKind::StopAndCopy, PolicyKind::Adaptive, PolicyKind::AutoConverge] {
        let pauses = vec![2 * GOAL; 10];
        let failed = migrate(policy, pauses, StampedFactory::default(), |_, _, _| {}).unwrap_err();
        assert!(matches!(failed.error, Error::GaveUp(_)), "{policy:?}: {}", failed.error);
        let text = failed.error.to_string();
        assert!(text.contains("3 stuns took longer than they may"), "{text}");
        assert_eq!(failed.report.overruns.len(), 3);
    }
}
