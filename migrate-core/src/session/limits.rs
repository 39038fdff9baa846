//! Tests in virtual time of limits that are too long to be waited for: a peer that lives and does
//! nothing is not waited for without end.

use std::time::Duration;

use super::destination::{self, Destination};
use super::source::{self, Source};
use super::{ConnectionId, Failure, Heard, IDLE_LIMIT, Machine, Moment, Output, STALL_LIMIT};
use crate::proto::message::{Message, Progress, Setup};

const LINE: ConnectionId = ConnectionId(1);
const TIMEOUT: Duration = Duration::from_secs(4);
const STEP: Duration = Duration::from_millis(500);

fn setup() -> Setup {
    Setup { regions: vec![1 << 20], streams: 1, earlier: Vec::new(), description: Vec::new() }
}

/// The peer says that it lives, each half second and nothing else, until `ended` finds an output that
/// it waits for; when that was.
fn alive_until<M: Machine>(machine: &mut M, ended: impl Fn(&Output<M::Order>) -> bool) -> Duration {
    let mut now = Moment::default();
    while now < Moment(Duration::from_secs(600)) {
        now = now.after(STEP);
        let alive = Heard::Message(Message::Alive(Progress::default()));
        let outputs =
            [machine.on(M::heard(LINE, alive), now), machine.on(M::tick(Progress::default()), now)];
        if outputs.iter().flatten().any(&ended) {
            return now.0;
        }
    }
    panic!("it waits without end");
}

/// B36: a source announced 12 GiB, which stayed populated for as long as it liked.
#[test]
fn memory_is_taken_back_from_a_source_that_fills_none_of_it() {
    let settings = destination::Settings { resolve_limit: TIMEOUT, give_up_after: None };
    let mut there = Destination::new(settings);
    for event in [
        destination::Event::Called(LINE, TIMEOUT),
        destination::Event::Heard(LINE, Heard::Message(Message::Setup(setup()))),
        destination::Event::Built(Ok(())),
    ] {
        there.on(event, Moment::default());
    }
    let dropped = |output: &Output<destination::Order>| {
        matches!(output, Output::Order(destination::Order::Drop(Failure::Stuck(..))))
    };
    let took = alive_until(&mut there, dropped);
    assert!(took > IDLE_LIMIT && took <= IDLE_LIMIT + 2 * STEP, "{took:?}");
}

/// B33: Setup answered by signs of life alone; the guest runs on.
#[test]
fn a_shadow_that_is_never_built_is_not_waited_for() {
    let settings = source::Settings {
        setup: setup(),
        link_timeout: TIMEOUT,
        resolve_limit: TIMEOUT,
        give_up_after: None,
    };
    let mut here = Source::new(settings);
    here.on(source::Event::Start, Moment::default());
    here.on(source::Event::Connected(LINE, TIMEOUT), Moment::default());
    let resumed = |output: &Output<source::Order>| {
        matches!(output, Output::Order(source::Order::Resume(Failure::Stuck(..))))
    };
    let took = alive_until(&mut here, resumed);
    assert!(took > STALL_LIMIT && took <= STALL_LIMIT + 2 * STEP, "{took:?}");
}
