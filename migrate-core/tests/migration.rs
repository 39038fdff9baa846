//! Whole migrations between two hosts in one process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use migrate_core::Error;
use migrate_core::codec::{Compress, Delta, Encoding};
use migrate_core::destination;
use migrate_core::guest::stamped::proof::judge;
use migrate_core::guest::stamped::{StampedFactory, StampedGuest, StampedShadow};
use migrate_core::guest::tracker::{self, TrackerKind};
use migrate_core::guest::{Guest, GuestError, ShadowFactory, Work};
use migrate_core::link::endpoint::Endpoint;
use migrate_core::link::tls::Identity;
use migrate_core::link::{Exposure, LinkSettings};
use migrate_core::operator::{Desk, Request, StateDirectory, desk};
use migrate_core::policy::PolicyKind;
use migrate_core::proto::Epoch;
use migrate_core::session::{Failure, Word};
use migrate_core::source::{self, SourceSettings, Streams};
use support::{Quiet, assert_healthy, guest, listener, receiver, send, settings, spec, testify};
use verifier::verdict::Verdict;

#[test]
fn every_policy_tracker_and_pattern_arrives_whole() {
    use PolicyKind::{Adaptive, AutoConverge, Precopy, StopAndCopy, Vmotion};
    use TrackerKind::{Auto, Mprotect};
    let encoding = |compress, delta, delta_cache_bytes| Encoding {
        compress,
        delta,
        delta_cache_bytes,
        ..Encoding::default()
    };
    let encodings = [
        Encoding::default(),
        Encoding::PLAIN,
        encoding(Compress::Zstd, Delta::On, 1 << 30),
        encoding(Compress::Lz4, Delta::On, 1 << 20),
        encoding(Compress::Off, Delta::On, 1 << 30),
    ];
    let mut encodings = encodings.iter().cycle();
    for (policy, tracker, workload, streams) in [
        (Vmotion, Auto, "stream,record=16KiB", 1),
        (Precopy, Mprotect, "uniform", 2),
        (Vmotion, Mprotect, "uniform,record=64", 3),
        (AutoConverge, Auto, "stream", 1),
        (StopAndCopy, Auto, "stream,record=2MiB", 4),
        (Adaptive, Auto, "stream,record=16KiB", 1),
        (Adaptive, Mprotect, "uniform,record=64", 3),
        (Adaptive, Auto, "hotset,p=0.95,f=0.02,content=sparse", 2),
        (Precopy, Auto, "zipf,record=1KiB,content=zero-flip", 2),
        (Vmotion, Auto, "hotset,content=delta:3", 1),
        (Precopy, Auto, "iometer,content=text*1+sparse*1", 2),
        (StopAndCopy, Auto, "touch,content=sparse", 1),
        (Vmotion, Auto, "fileio,file=1MiB,run=64KiB", 1),
        (Precopy, Auto, "phases,of=stream-index*500+iid*700,on=5ms,off=5ms", 1),
    ] {
        let mut spec = spec(37);
        spec.workload = workload.parse().unwrap();
        let mut guest = guest(&spec, 40_000_000);
        let (listener, address) = listener();
        let there = receiver(listener, StampedFactory::default());
        let mut settings = settings(address);
        (settings.policy, settings.streams) = (policy, Streams::Fixed(streams));
        settings.encoding = *encodings.next().unwrap();
        let began = vec![0; 2];
        let mut tracker = tracker::open(tracker, &guest.memory()).unwrap();
        let done = source::migrate(&mut guest, &mut *tracker, &settings, &mut Quiet::default())
            .unwrap_or_else(|e| panic!("{policy:?}, {workload}: {}", e.error));
        let arrived = there.join().unwrap().unwrap();
        assert_eq!(arrived.epoch, Epoch(1));
        let testimony = testify(arrived.guest);
        let source_root = guest.root();
        let proof = judge(
            guest.workload().lines(),
            began,
            guest.watermarks(),
            Some(source_root),
            Some(testimony),
        );
        assert_eq!(proof.verdict, Verdict::Proven, "{workload}: {:?}", proof.reasons);
        assert!(done.report.page_bytes >= spec.memory.0);
        assert!(done.report.downtime.total_ms > 0.0);
    }
}

/// A destination that takes its time to make a shadow.
struct Slow(StampedFactory);

impl ShadowFactory for Slow {
    type Shadow = StampedShadow;
    fn create(
        &mut self,
        description: &[u8],
        regions: &[u64],
        work: &Work,
    ) -> Result<StampedShadow, GuestError> {
        std::thread::sleep(Duration::from_millis(300));
        self.0.create(description, regions, work)
    }
}

#[test]
fn what_is_written_after_the_first_look_arrives_as_well() {
    use PolicyKind::{Adaptive, Precopy, StopAndCopy};
    for (policy, rate) in [(Adaptive, 40_000_000), (Precopy, 20_000_000), (StopAndCopy, 80_000_000)]
    {
        let mut spec = spec(16);
        // Zero pages get contents, others become zero, all get new contents.
        spec.workload = "uniform,record=16KiB,content=zero-flip*1+random*1".parse().unwrap();
        let mut guest = guest(&spec, rate);
        let (listener, address) = listener();
        let there = receiver(listener, Slow(StampedFactory::default()));
        let mut settings = settings(address);
        settings.policy = policy;
        settings.encoding = Encoding::PLAIN;
        let done = send(&mut guest, &settings).unwrap();
        let looked_at = done.report.looked_at_pages;
        assert_eq!(looked_at, guest.memory().pages(), "{policy:?}: all in that time");
        let testimony = testify(there.join().unwrap().unwrap().guest);
        let root = guest.root();
        let proof = judge(16 << 14, vec![0; 2], guest.watermarks(), Some(root), Some(testimony));
        assert_eq!(proof.verdict, Verdict::Proven, "{policy:?}: {:?}", proof.reasons);
    }
}

#[test]
fn a_guest_hops_from_host_to_host() {
    let spec = spec(16);
    let mut here = guest(&spec, 20_000_000);
    for epoch in 1..=3 {
        let (listener, address) = listener();
        let there = receiver(listener, StampedFactory::default());
        let mut settings = settings(address);
        settings.epoch = Epoch(epoch);
        send(&mut here, &settings).unwrap();
        let mut shadow = there.join().unwrap().unwrap().guest;
        assert_eq!(shadow.first_scan.as_ref().unwrap().watermarks, here.watermarks());
        here = shadow.guest.take().unwrap();
        assert_eq!(here.describe().epoch, epoch);
        assert_healthy(&mut here);
    }
}

#[test]
fn mutual_tls_arrives_whole_and_strangers_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let write =
        |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    write("ca-cert.pem", ca_certificate.pem());
    let issuer = rcgen::Issuer::new(ca, ca_key);
    for role in ["client", "server"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        write(&format!("{role}-cert.pem"), parameters.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{role}-key.pem"), key.serialize_pem());
    }
    let link = LinkSettings {
        identity: Some(Identity::in_directory(directory.path())),
        timeout: Duration::from_secs(2),
        ..LinkSettings::default()
    };
    let mut guest = guest(&spec(16), 20_000_000);
    let listener = Endpoint::bind("127.0.0.1:0".parse().unwrap(), link.clone()).unwrap();
    let mut settings = settings(listener.address());
    let listener = Arc::new(listener);
    let there = receiver(listener, StampedFactory::default());

    // A stranger without certificate is turned away, and the receiver goes on waiting.
    let failed = send(&mut guest, &settings).unwrap_err();
    assert!(matches!(failed.error, Error::Link { .. } | Error::Protocol(_)), "{}", failed.error);
    assert_healthy(&mut guest);

    (settings.link, settings.streams) = (link, Streams::Fixed(2));
    send(&mut guest, &settings).unwrap();
    let shadow = there.join().unwrap().unwrap().guest;
    assert_eq!(shadow.first_scan.unwrap().watermarks, guest.watermarks());
}

#[test]
fn cancelling_leaves_the_guest_running_and_a_second_attempt_is_whole() {
    let mut guest = guest(&spec(64), 30_000_000);
    let (receiving, address) = listener();
    let there = receiver(receiving, StampedFactory::default());
    let mut settings = settings(address);
    settings.bandwidth = Some(50e6);
    let quiet = Quiet::default();
    let cancel = quiet.0.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        cancel.store(true, Ordering::Relaxed);
    });
    let mut tracker = tracker::open(TrackerKind::Auto, &guest.memory()).unwrap();
    let failed =
        source::migrate(&mut guest, &mut *tracker, &settings, &mut quiet.clone()).unwrap_err();
    assert!(matches!(failed.error, Error::Cancelled));
    assert!(there.join().unwrap().is_err(), "the receiver was told");
    assert_healthy(&mut guest);
    drop(tracker);

    let (receiving, address) = listener();
    let there = receiver(receiving, StampedFactory::default());
    (settings.peer, settings.bandwidth) = (address.into(), None);
    send(&mut guest, &settings).unwrap();
    assert_healthy(&mut there.join().unwrap().unwrap().guest.guest.take().unwrap());
}

#[test]
fn a_destination_that_cannot_hold_the_guest_says_so() {
    struct Full;
    impl ShadowFactory for Full {
        type Shadow = migrate_core::guest::stamped::StampedShadow;
        fn create(
            &mut self,
            _: &[u8],
            _: &[u64],
            _: &Work,
        ) -> Result<Self::Shadow, migrate_core::guest::GuestError> {
            Err(migrate_core::guest::GuestError::new("build the shadow", "no memory left"))
        }
    }
    let mut guest = guest(&spec(16), 20_000_000);
    let (listener, address) = listener();
    let there = receiver(listener, Full);
    let failed = send(&mut guest, &settings(address)).unwrap_err();
    assert!(failed.error.to_string().contains("no memory left"), "{}", failed.error);
    assert!(there.join().unwrap().is_err());
    assert_healthy(&mut guest);
}

#[test]
fn an_address_beyond_loopback_needs_protection() {
    let address = "192.0.2.1:7400".parse().unwrap();
    let link = LinkSettings::default();
    assert!(matches!(link.allow(address), Err(Error::Insecure(_))));
    assert!(LinkSettings { exposure: Exposure::Insecure, ..link }.allow(address).is_ok());
}

#[test]
fn a_bandwidth_that_moves_nothing_is_refused() {
    let mut guest = guest(&spec(16), 20_000_000);
    let (_listener, address) = listener();
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let settings = SourceSettings { bandwidth: Some(rate), ..settings(address) };
        let failed = send(&mut guest, &settings).unwrap_err();
        assert!(matches!(failed.error, Error::Settings(_)), "{rate}: {}", failed.error);
        assert_healthy(&mut guest);
    }
}

/// The one ambiguous moment: Run was sent, the link dies before Running comes back.
#[test]
fn a_handover_that_lost_its_answer_is_resolved_forward() {
    let mut guest = guest(&spec(16), 20_000_000);
    let (listener, address) = listener();
    let there = receiver(listener, StampedFactory::default());
    // Everything passes until the destination says Running; then the proxy cuts that connection,
    // and lets later ones through.
    let proxy = proxy::start(address, proxy::Rule::CutAtRunning);
    let done = send(&mut guest, &settings(proxy)).unwrap();
    assert!(done.report.is_done());
    let shadow = there.join().unwrap().unwrap().guest;
    assert_eq!(shadow.first_scan.as_ref().unwrap().watermarks, guest.watermarks());
    let stopped = guest.watermarks();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(guest.watermarks(), stopped, "the source stays stopped");
}

/// The same moment with Run lost: the destination is prepared and must wait to be told.
#[test]
fn a_handover_that_lost_its_word_is_resolved_forward() {
    let mut guest = guest(&spec(16), 20_000_000);
    let (listener, address) = listener();
    let there = receiver(listener, StampedFactory::default());
    let proxy = proxy::start(address, proxy::Rule::CutAtRun);
    let done = send(&mut guest, &settings(proxy)).unwrap();
    assert!(done.report.is_done());
    assert!(there.join().unwrap().is_ok());
}

/// Says a word to whoever holds the one migration under way, until it is taken.
fn say_until_taken(directory: &StateDirectory, word: Word) -> Vec<String> {
    let mut answers = vec![];
    for _ in 0..200 {
        match desk::tell(directory, Request::Word(None, word)).unwrap() {
            Some(reply) if reply.taken => return answers,
            Some(reply) => answers.push(reply.text),
            None => {}
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("never taken: {answers:?}");
}

/// A migration whose source has an operator of its own; what became of it, and of the destination.
fn with_operator(
    guest: &mut StampedGuest,
    rule: proxy::Rule,
    operator: impl FnOnce(&StateDirectory) + Send,
) -> (Result<source::Migrated, Box<source::NotMigrated>>, Result<(), Error>) {
    let keep = tempfile::tempdir().unwrap();
    let directory = StateDirectory::open(&keep.path().join("source")).unwrap();
    let (listener, address) = listener();
    let there = std::thread::spawn(move || {
        let mut settings = support::receive_settings();
        settings.give_up_after = Some(Duration::from_secs(10));
        let mut factory = StampedFactory::default();
        let quiet = &mut Quiet::default();
        destination::receive(&listener, &mut factory, &settings, quiet).map(drop)
    });
    let mut settings = settings(proxy::start(address, rule));
    settings.operator = Some(Arc::new(Desk::open(&directory).unwrap()));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| operator(&directory));
        send(guest, &settings)
    });
    drop(settings);
    (result, there.join().unwrap())
}

/// Nobody hears Run, however often it is said, but the destination can be asked to refuse.
#[test]
fn an_operator_takes_a_guest_back_that_the_destination_refuses() {
    let mut guest = guest(&spec(16), 20_000_000);
    let (result, there) = with_operator(&mut guest, proxy::Rule::CutAtEveryRun, |directory| {
        let word = Word::SourceRuns { runs_nowhere_else: false };
        let early = say_until_taken(directory, word);
        assert!(
            early.iter().all(|text| text.contains("nothing is to be decided")
                || text.contains("not yet")
                || text.contains("being decided")),
            "{early:?}"
        );
    });
    let failed = result.unwrap_err().error;
    assert!(matches!(failed, Error::Session(Failure::Refused(_))), "{failed}");
    assert_healthy(&mut guest);
    assert!(there.is_err());
}

/// The destination cannot be reached any more: the word is only taken once Run is void, and after
/// the operator was asked to look.
#[test]
fn an_operator_takes_a_guest_back_from_a_dead_destination() {
    let mut guest = guest(&spec(16), 20_000_000);
    let (result, there) = with_operator(&mut guest, proxy::Rule::DeadAtRun, |directory| {
        let word = Word::SourceRuns { runs_nowhere_else: true };
        let answers = say_until_taken(directory, word);
        let waited = answers.iter().filter(|text| text.contains("may still do so for")).count();
        assert!(waited > 10, "two link timeouts: {answers:?}");
        assert_eq!(answers.iter().filter(|text| text.contains("look now")).count(), 1);
    });
    assert!(matches!(result.unwrap_err().error, Error::Cancelled));
    assert_healthy(&mut guest);
    assert!(there.is_err(), "it gave up in the end");
}

#[test]
fn an_operator_leaves_a_guest_to_the_destination_or_gives_it_up() {
    for word in [Word::DestinationRuns { source_is_gone: false }, Word::GiveUp] {
        let mut guest = guest(&spec(16), 20_000_000);
        let (result, there) = with_operator(&mut guest, proxy::Rule::DeadAtRun, |directory| {
            say_until_taken(directory, word);
        });
        let stopped = guest.watermarks();
        match word {
            Word::GiveUp => {
                let failed = result.unwrap_err().error;
                assert!(failed.to_string().contains("vmigrate resolve"), "{failed}");
            }
            _ => assert!(result.unwrap().control.is_none()),
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(guest.watermarks(), stopped, "the source stays stopped");
        assert!(there.is_err(), "it gave up in the end");
    }
}

/// Where nobody comes to decide, both ends give up after the time that they were told, and not
/// before: the guest stays stopped, and the error says what to do.
#[test]
fn an_unresolved_handover_is_given_up_only_when_that_was_said() {
    let mut guest = guest(&spec(16), 20_000_000);
    let (listener, address) = listener();
    let there = std::thread::spawn(move || {
        let mut settings = support::receive_settings();
        settings.give_up_after = Some(Duration::from_millis(1500));
        let mut factory = StampedFactory::default();
        let quiet = &mut Quiet::default();
        destination::receive(&listener, &mut factory, &settings, quiet).map(drop)
    });
    let mut settings = settings(proxy::start(address, proxy::Rule::DeadAtRun));
    settings.resolve_timeout = Duration::from_millis(200);
    settings.give_up_after = Some(Duration::from_millis(1500));
    let start = std::time::Instant::now();
    let failed = send(&mut guest, &settings).unwrap_err();
    assert!(start.elapsed() > Duration::from_millis(1500), "the limit asks, it does not hold");
    let stopped = guest.watermarks();
    assert!(failed.error.to_string().contains("vmigrate resolve"), "{}", failed.error);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(guest.watermarks(), stopped);
    assert!(there.join().unwrap().is_err());
}

#[path = "support/proxy.rs"]
mod proxy;
