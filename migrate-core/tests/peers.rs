//! Peers and links that do what none should: a destination that answers and does nothing, a source
//! that floods or reserves, links that are slow, or drop what is idle. Everything ends within a time
//! that is named, and costs memory that is bounded.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use migrate_core::Error;
use migrate_core::guest::Guest;
use migrate_core::guest::stamped::StampedFactory;
use migrate_core::link::LinkSettings;
use migrate_core::link::channel::Channel;
use migrate_core::link::endpoint::Route;
use migrate_core::proto::header::{HEADER_BYTES, Header};
use migrate_core::proto::hello::{Features, Hello, MigrationId, Role, Terms, Welcome};
use migrate_core::proto::message::{Message, Progress, Setup};
use migrate_core::proto::page_frame::PageFrame;
use migrate_core::proto::{Epoch, ProtoError, StunNumber};
use migrate_core::source::SourceSettings;
use support::{Tamper, TamperedFactory, assert_healthy, guest, listener, send, settings, spec};

mod support;

const VMIGRATE: &str = env!("CARGO_BIN_EXE_vmigrate");
const TIMEOUT: Duration = Duration::from_millis(500);

fn message(channel: &Channel, tag: u64) -> std::io::Result<Message> {
    let mut head = [0; HEADER_BYTES];
    channel.read_exact(&mut head)?;
    let header = Header::decode(head, tag).map_err(std::io::Error::other)?;
    let mut payload = vec![0; header.length];
    channel.read_exact(&mut payload)?;
    Message::decode(&header, payload).map_err(std::io::Error::other)
}

fn await_message(channel: &Channel, tag: u64, wanted: impl Fn(&Message) -> bool) -> Message {
    loop {
        let message = message(channel, tag).unwrap();
        if wanted(&message) {
            return message;
        }
    }
}

/// A destination that takes a guest up to Run and does not run it; what it does then is `then`'s. It
/// says that it lives until its endpoint goes.
fn destination_that(then: impl FnOnce(Route, Channel, u64) + Send + 'static) -> SocketAddr {
    let (endpoint, address) = listener();
    std::thread::spawn(move || {
        let caller = endpoint.arrival(Instant::now() + Duration::from_secs(20)).unwrap();
        let route = endpoint.route(caller.hello.migration);
        let tag = caller.hello.migration.tag();
        let (control, _) = caller.answer(&Welcome::Ok).unwrap();
        await_message(&control, tag, |message| matches!(message, Message::Setup(_)));
        control.write(&Message::SetupDone.encode(tag)).unwrap();
        let data = route.next(Duration::from_secs(5)).unwrap();
        let (data, _) = data.answer(&Welcome::Ok).unwrap();
        loop {
            let mut head = [0; HEADER_BYTES];
            data.read_exact(&mut head).unwrap();
            let frame = PageFrame::decode(head, tag).unwrap();
            data.read_exact(&mut vec![0; frame.payload_bytes()]).unwrap();
            if matches!(frame, PageFrame::EndOfPages(_)) {
                break;
            }
        }
        await_message(&control, tag, |message| matches!(message, Message::State { .. }));
        let ready = Message::Ready { stun: StunNumber(1), inspected: Duration::ZERO };
        control.write(&ready.encode(tag)).unwrap();
        await_message(&control, tag, |message| matches!(message, Message::Run { .. }));
        then(route, control, tag);
        drop(endpoint);
    });
    address
}

fn alive(channel: &Channel, tag: u64) -> bool {
    std::thread::sleep(TIMEOUT / 8);
    channel.write(&Message::Alive(Progress::default()).encode(tag)).is_ok()
}

fn quick(peer: SocketAddr) -> SourceSettings {
    let link = LinkSettings { timeout: TIMEOUT, ..LinkSettings::default() };
    SourceSettings { link, ..settings(peer) }
}

// B27
#[test]
fn a_destination_that_answers_how_it_stands_by_signs_of_life_alone_is_not_waited_for() {
    let address = destination_that(|route, control, _| {
        control.close();
        while let Some(caller) = route.next(Duration::from_secs(5)) {
            assert_eq!(caller.hello.role, Role::Resolve);
            let tag = caller.hello.migration.tag();
            let (channel, _) = caller.answer(&Welcome::Ok).unwrap();
            while alive(&channel, tag) {}
        }
    });
    let mut guest = guest(&spec(8), 1_000_000);
    let give_up_after = Some(Duration::from_secs(4));
    let start = Instant::now();
    let failed = send(&mut guest, &SourceSettings { give_up_after, ..quick(address) }).unwrap_err();
    assert!(matches!(failed.error, Error::Unresolved { .. }), "{}", failed.error);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let stopped = guest.watermarks();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.watermarks(), stopped, "it may run there");
}

// B28
#[test]
fn a_destination_that_never_says_what_it_found_does_not_hold_the_user() {
    for again in [false, true] {
        let address = destination_that(move |_route, control, tag| {
            let said = Message::Running.encode(tag);
            control.write(&said).unwrap();
            while alive(&control, tag) && (!again || control.write(&said).is_ok()) {}
        });
        let mut sender = Command::new(VMIGRATE)
            .args(["send", "--to", &address.to_string(), "--memory", "8MiB", "--rate", "1MB/s"])
            .args(["--streams", "1", "--run-on", "100ms", "--link-timeout", "500ms"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(2500));
        assert!(sender.try_wait().unwrap().is_none(), "it waits for the proof");
        let id = sender.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let start = Instant::now();
        let output = sender.wait_with_output().unwrap();
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(4), "{text}");
        assert!(text.contains("INCONCLUSIVE"), "{text}");
    }
}

// B33
#[test]
fn a_welcome_that_drips_has_one_deadline() {
    let address = between(|mut stream| {
        std::thread::spawn(move || {
            let terms = Terms { link_timeout: TIMEOUT, features: Features::OURS };
            for byte in Welcome::Ok.encode(terms) {
                std::thread::sleep(TIMEOUT / 2);
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
            }
        });
    });
    let mut guest = guest(&spec(8), 1_000_000);
    let start = Instant::now();
    let failed = send(&mut guest, &quick(address)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}: {}", start.elapsed(), failed.error);
    assert_healthy(&mut guest);
}

/// Listens for connections, and gives each of them to `on`.
fn between(on: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(on));
    address
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A source that sets a guest up and floods while the destination loads it; how it ended there, and
/// by how much this process grew meanwhile.
fn flooded(flood: impl Fn(&mut TcpStream, u64) + Send + 'static) -> (Error, u64) {
    let (endpoint, address) = listener();
    let factory = TamperedFactory {
        inner: StampedFactory::default(),
        tamper: Tamper::SlowState(Duration::from_secs(3)),
    };
    let mut source = guest(&spec(8), 1_000_000);
    source.pause().unwrap();
    let (description, state) = (source.description(), source.save_state().unwrap());
    let before = resident_bytes();
    let most = Arc::new(AtomicU64::new(0));
    let (seen, (stop, stopped)) = (most.clone(), mpsc::channel::<()>());
    let watch = std::thread::spawn(move || {
        while stopped
            .recv_timeout(Duration::from_millis(5))
            .is_err_and(|e| e == mpsc::RecvTimeoutError::Timeout)
        {
            seen.fetch_max(resident_bytes(), Ordering::Relaxed);
        }
    });
    let there = support::receiver(endpoint, factory);
    let flooding = std::thread::spawn(move || {
        let migration = MigrationId::random();
        let tag = migration.tag();
        let hello = |role| Hello {
            migration,
            role,
            epoch: Epoch(1),
            link_timeout: Duration::from_secs(2),
            features: Features::OURS,
        };
        let connect = |role| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&hello(role).encode()).unwrap();
            Welcome::read::<ProtoError>(|bytes| {
                stream.read_exact(bytes).unwrap();
                Ok(())
            })
            .unwrap();
            stream
        };
        let mut control = connect(Role::Control);
        let setup = Setup { regions: vec![2048], streams: 1, earlier: vec![], description };
        control.write_all(&Message::Setup(setup).encode(tag)).unwrap();
        control.read_exact(&mut [0; HEADER_BYTES]).unwrap();
        let mut data = connect(Role::Data { stream: 0 });
        let end = PageFrame::EndOfPages(StunNumber(1)).encode(tag);
        data.write_all(&end).unwrap();
        control.write_all(&Message::State { stun: StunNumber(1), state }.encode(tag)).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        flood(&mut control, tag);
    });
    let ended = there.join().unwrap().map(drop).unwrap_err();
    flooding.join().unwrap();
    drop(stop);
    watch.join().unwrap();
    (ended, most.load(Ordering::Relaxed).saturating_sub(before))
}

// B35
#[test]
fn a_source_that_floods_costs_bounded_memory() {
    let states = |control: &mut TcpStream, tag: u64| {
        let state = Message::State { stun: StunNumber(1), state: vec![7; 63 << 20] }.encode(tag);
        let _ = (0..40).try_for_each(|_| control.write_all(&state));
    };
    let notes = |control: &mut TcpStream, tag: u64| {
        let note = Message::Note { number: 1, note: vec![7; 4 << 20] }.encode(tag);
        let _ = (0..400).try_for_each(|_| control.write_all(&note));
    };
    let alive = |control: &mut TcpStream, tag: u64| {
        let alive = Message::Alive(Progress::default()).encode(tag).repeat(1000);
        let _ = (0..100).try_for_each(|_| control.write_all(&alive));
        let cancel = Message::Cancel { why: "enough".to_owned() }.encode(tag);
        let _ = control.write_all(&cancel);
    };
    // The message itself is here twice: with whoever sends it, and with whoever reads it.
    for (grown, most) in
        [(flooded(states), 300 << 20), (flooded(notes), 100 << 20), (flooded(alive), 100 << 20)]
    {
        let (error, bytes) = grown;
        assert!(bytes < most, "{bytes} bytes: {error}");
    }
}

// C1
#[test]
fn a_stun_whose_answer_was_lost_counts_with_the_time_it_took_to_find_out() {
    let address = destination_that(|route, control, _| {
        // Silent for a second; then the source comes back, and hears that the guest runs.
        std::thread::sleep(Duration::from_secs(1));
        control.close();
        let caller = route.next(Duration::from_secs(5)).unwrap();
        let tag = caller.hello.migration.tag();
        let (channel, _) = caller.answer(&Welcome::Ok).unwrap();
        channel.write(&Message::Running.encode(tag)).unwrap();
        while alive(&channel, tag) {}
    });
    let mut guest = guest(&spec(8), 1_000_000);
    let done = send(&mut guest, &settings(address)).unwrap();
    let downtime = &done.report.downtime;
    assert!(downtime.total_ms > 900.0 && done.report.over_goal, "{downtime:?}");
    assert!(downtime.resume_ms > 900.0, "{downtime:?}");
}

/// A link that delivers everything so much later.
fn delayed(to: SocketAddr, delay: Duration) -> SocketAddr {
    fn relay(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
        let (late, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(1 << 12);
        std::thread::spawn(move || {
            for (due, bytes) in due {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if to.write_all(&bytes).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if late.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    }
    between(move |near| {
        // A connection takes a round trip, too.
        std::thread::spawn(move || {
            std::thread::sleep(2 * delay);
            let far = TcpStream::connect(to).unwrap();
            let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || relay(near, far, delay));
            relay(back.0, back.1, delay);
        });
    })
}

// C7
#[test]
fn many_streams_are_opened_together_over_a_long_way() {
    let (endpoint, address) = listener();
    let there = support::receiver(endpoint, StampedFactory::default());
    let mut guest = guest(&spec(8), 1_000_000);
    let far = delayed(address, Duration::from_millis(300));
    let streams = migrate_core::source::Streams::Fixed(16);
    let start = Instant::now();
    let done = send(&mut guest, &SourceSettings { streams, ..settings(far) }).unwrap();
    // One after the other they would take 19 s.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(done.report.streams, 16);
    assert!(there.join().unwrap().is_ok());
}

// C8, B1
#[test]
fn a_destination_that_takes_long_to_load_and_look_lives() {
    let (endpoint, address) = listener();
    let tamper = Tamper::SlowState(4 * TIMEOUT);
    let there =
        support::receiver(endpoint, TamperedFactory { inner: StampedFactory::default(), tamper });
    let mut guest = guest(&spec(8), 1_000_000);
    send(&mut guest, &quick(address)).unwrap();
    assert!(there.join().unwrap().is_ok());
}

/// A link that drops connections on which nothing came in either direction for so long.
fn forgetful(to: SocketAddr, idle: Duration) -> SocketAddr {
    between(move |near| {
        let far = TcpStream::connect(to).unwrap();
        let start = Instant::now();
        let last = Arc::new(AtomicU64::new(0));
        let ends = (near.try_clone().unwrap(), far.try_clone().unwrap());
        for (mut from, mut to) in [
            (near.try_clone().unwrap(), far.try_clone().unwrap()),
            (far.try_clone().unwrap(), near.try_clone().unwrap()),
        ] {
            let last = last.clone();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    last.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Write);
            });
        }
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(50));
                let quiet = start.elapsed().as_millis() as u64 - last.load(Ordering::Relaxed);
                if u128::from(quiet) > idle.as_millis() {
                    let _ = ends.0.shutdown(Shutdown::Both);
                    let _ = ends.1.shutdown(Shutdown::Both);
                    return;
                }
            }
        });
    })
}

// C14
#[test]
fn streams_without_work_are_kept_open_by_signs_of_life() {
    let (endpoint, address) = listener();
    let there = support::receiver(endpoint, StampedFactory::default());
    // Of four streams two carry the four MiB, for four seconds.
    let mut guest = guest(&spec(4), 10_000);
    let through = forgetful(address, Duration::from_secs(1));
    let streams = migrate_core::source::Streams::Fixed(4);
    let settings = SourceSettings { streams, bandwidth: Some(1e6), ..settings(through) };
    send(&mut guest, &settings).unwrap();
    assert!(there.join().unwrap().is_ok());
}
