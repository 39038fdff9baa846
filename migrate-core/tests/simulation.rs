//! Policies under a thousand random links and guests: they end, in a named way, and never stun
//! over the goal without saying so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use migrate_core::memory::PAGE_BYTES;
use migrate_core::policy::{Fit, PolicyKind, Settings};
use migrate_core::predict::model::{
    End, ModelGuest, ModelHost, ModelLink, Outcome, Scenario, Writes,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn run(
    guest: ModelGuest,
    link: ModelLink,
    policy: PolicyKind,
    settings: Settings,
    seed: u64,
) -> Outcome {
    let scenario = Scenario { guest, host: ModelHost::default(), link };
    migrate_core::predict::model::run(scenario, policy, settings, seed)
}

#[test]
fn a_thousand_random_migrations_end_in_a_named_way() {
    let start = Instant::now();
    let (mut done, mut gave_up) = (0, 0);
    for seed in 0..1000 {
        let mut random = SmallRng::seed_from_u64(seed);
        let pages = random.random_range(64..4096);
        let bytes_per_s = 10f64.powf(random.random_range(6.0..8.0));
        let r = 10f64.powf(random.random_range(-2.0..1.2));
        let guest = ModelGuest {
            pages,
            writable: random.random_range(1..=pages),
            pages_per_s: r * bytes_per_s / PAGE_BYTES as f64,
            writes: if random.random() { Writes::Stream } else { Writes::Uniform },
        };
        let link = ModelLink { bytes_per_s, jitter: random.random_range(0.0..0.3) };
        let settings = Settings {
            goal: Duration::from_secs_f64(random.random_range(0.001..0.5)),
            beta: random.random_range(0.3..0.97),
            ..Settings::default()
        };
        let policy = PolicyKind::ALL[random.random_range(0..PolicyKind::ALL.len())].0;
        let outcome = run(guest, link, policy, settings, seed);
        match outcome.end {
            End::GaveUp(why) => {
                assert!(!why.why.is_empty(), "seed {seed}");
                gave_up += 1;
            }
            End::Done { stun, downtime } => {
                done += 1;
                if stun.fit == Fit::WithinGoal {
                    // What the policy cannot know is how bandwidth varies after its decision.
                    let bound =
                        settings.goal.as_secs_f64() * (1.0 + link.jitter) / (1.0 - link.jitter);
                    assert!(
                        downtime.as_secs_f64() <= bound * 1.01,
                        "seed {seed}: {policy:?} said within {:?} and took {downtime:?}",
                        settings.goal
                    );
                } else {
                    assert_eq!(policy, PolicyKind::StopAndCopy, "seed {seed}");
                }
            }
        }
    }
    assert!(done > 500 && gave_up > 20, "both ways to end occur: {done} and {gave_up}");
    // Generous: the claim is "under 10 s", and this is no benchmark.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    println!("1000 simulated migrations in {:?}: {done} done, {gave_up} gave up", start.elapsed());
}

fn experiment(r: f64, k: f64) -> Outcome {
    // A 1 GiB VM at 1 Gbit/s has the white paper's dimensionless numbers.
    let pages = 1 << 18;
    let slow = 125e6;
    let guest = ModelGuest {
        pages,
        writable: pages,
        pages_per_s: r * slow / PAGE_BYTES as f64,
        writes: Writes::Stream,
    };
    let settings = Settings { goal: Duration::from_millis(39), beta: 0.914, ..Settings::default() };
    run(guest, ModelLink { bytes_per_s: k * slow, jitter: 0.0 }, PolicyKind::Vmotion, settings, 1)
}

/// The white paper's two figures, in its default reading, from one controller.
#[test]
fn the_white_papers_ratios_follow() {
    for (r, paper) in [(1.0, 38.0), (3.565, 5.5)] {
        let ratio = experiment(r, 1.0).total.as_secs_f64() / experiment(r, 4.0).total.as_secs_f64();
        assert!((ratio / paper - 1.0).abs() < 0.1, "r = {r}: {ratio:.1} against {paper}");
    }
}

#[test]
fn twice_the_links_dirty_rate_stalls_precopy_and_not_vmotion() {
    let guest = ModelGuest {
        pages: 1 << 16,
        writable: 1 << 16,
        pages_per_s: 2.0 * 125e6 / PAGE_BYTES as f64,
        writes: Writes::Stream,
    };
    let link = ModelLink { bytes_per_s: 125e6, jitter: 0.02 };
    let end = |policy| run(guest, link, policy, Settings::default(), 3).end;
    assert!(matches!(end(PolicyKind::Precopy), End::GaveUp(_)));
    assert!(matches!(end(PolicyKind::Vmotion), End::Done { .. }));
    assert!(matches!(end(PolicyKind::AutoConverge), End::Done { .. }));
}

/// A tenth of memory is written, here and there, by `adaptive`'s guest; the goal is 40 ms. How it
/// ended, how long it was held and how long it stood still.
fn a_tenth_is_hot(r: f64, seed: u64) -> (Outcome, Duration, Duration) {
    let goal = Duration::from_millis(40);
    let pages_per_s = r * 125e6 / PAGE_BYTES as f64;
    let guest = ModelGuest { pages: 1 << 16, writable: 6554, pages_per_s, writes: Writes::Uniform };
    let link = ModelLink { bytes_per_s: 125e6, jitter: 0.02 };
    let settings = Settings { goal, ..Settings::default() };
    let outcome = run(guest, link, PolicyKind::Adaptive, settings, seed);
    let End::Done { downtime, .. } = outcome.end else { panic!("{:?}", outcome.end) };
    let held = Duration::from_secs_f64(outcome.lost_pages / pages_per_s);
    (outcome, held, downtime)
}

/// Where waiting costs much the guest is held at the end; that and the stun together cost it less
/// than the stun alone would have where the throttle began. Without it this guest takes 1.17 times
/// its memory, and a stun of 31 ms.
#[test]
fn the_last_stretch_costs_the_guest_less_than_a_stun_at_its_beginning() {
    for seed in 1..=8 {
        // Here waiting for less is worth as much as it costs: either is right, and neither dear.
        let (outcome, held, downtime) = a_tenth_is_hot(0.95, seed);
        assert!(held > Duration::ZERO, "seed {seed}: it was held");
        assert!(held + downtime < Duration::from_millis(50), "seed {seed}: {held:?} {downtime:?}");
        assert!(outcome.sent_pages < (1 << 16) * 116 / 100, "{}", outcome.sent_pages);
        // And here it is worth more.
        let (_, held, downtime) = a_tenth_is_hot(1.1, seed);
        assert!(downtime < Duration::from_millis(10), "seed {seed}: {downtime:?}");
        assert!(held + downtime < Duration::from_millis(80), "seed {seed}: {held:?} {downtime:?}");
    }
}

#[test]
fn a_guest_whose_rest_shrinks_by_itself_is_not_held() {
    assert_eq!(a_tenth_is_hot(0.4, 1).0.lost_pages, 0.0);
}

/// A terabyte, of which each page of the model stands for 256, and a gigabyte with the same numbers
/// beside it: the same times to a few parts in a hundred.
#[test]
fn a_page_of_the_model_may_stand_for_many() {
    let times = |scale: u64| {
        let pages = (1 << 18) * scale;
        let slow = 125e6 * scale as f64;
        let guest = ModelGuest {
            pages,
            writable: pages,
            pages_per_s: 0.9 * slow / PAGE_BYTES as f64,
            writes: Writes::Stream,
        };
        let goal = Duration::from_millis(39);
        let settings = Settings { goal, beta: 0.914, ..Settings::default() };
        let link = ModelLink { bytes_per_s: slow, jitter: 0.0 };
        let outcome = run(guest, link, PolicyKind::Vmotion, settings, 1);
        assert!(matches!(outcome.end, End::Done { .. }), "{:?}", outcome.end);
        (outcome.total.as_secs_f64(), outcome.sent_pages as f64 / pages as f64)
    };
    let ((small_s, small), (large_s, large)) = (times(1), times(1024));
    assert!((large_s / small_s - 1.0).abs() < 0.03, "{small_s} s and {large_s} s");
    assert!((large / small - 1.0).abs() < 0.03, "{small} and {large} times memory");
}
