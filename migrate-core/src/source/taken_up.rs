//! A decision that outlived its program: the record says that the guest is the destination's, and
//! whoever would tell the destination so is gone. Another program takes the record up and does.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::Observer;
use super::caller::{Caller, hear_interrupts, told, write_down};
use crate::Error;
use crate::clock::now;
use crate::conductor::{Conductor, ProgressGauge};
use crate::link::LinkSettings;
use crate::link::address::HostPort;
use crate::operator::StateDirectory;
use crate::operator::record::{Record, Says};
use crate::proto::hello::Features;
use crate::proto::message::Setup;
use crate::session::record::{Holder, SourceRecord};
use crate::session::source::{Arrival, Notice, Order, Settings, Source};
use crate::session::{Failure, Output};

/// How often a wait looks up.
const TICK: Duration = Duration::from_millis(20);

/// How a record is taken up.
#[derive(Clone, Debug)]
pub struct TakeUp {
    /// The destination; `None` where the record says.
    pub peer: Option<HostPort>,
    /// Protection and timeouts.
    pub link: LinkSettings,
    /// How long it may be unresolved before the observer hears of it again and again.
    pub resolve_timeout: Duration,
}

/// What became of a guest whose source is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs at the destination, or ran there; the record is gone.
    Arrived(Arrival),
    /// The destination will not run it, and there is no guest here: it is lost; so is the record.
    Lost(String),
    /// The user stopped asking; the record stays as it is.
    Left,
    /// Another program holds the record.
    Owned,
}

/// Takes up the committed record in this file, whose program is gone: asks the destination, lets it
/// run the guest if it stands there, and ends when that is known.
///
/// # Errors
/// The record cannot be used, says something else than that the guest is the destination's, or
/// cannot be written.
pub fn take_up(
    directory: &StateDirectory,
    file: &Path,
    settings: &TakeUp,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    let Some(mut record) = Record::take_up(directory, file)? else { return Ok(Outcome::Owned) };
    let contents = record.contents().clone();
    if contents.says != Says::Source(SourceRecord::Committed) {
        let word = contents.says.word();
        let why = format!("{} says '{word}': there is nobody to be told of it", file.display());
        return Err(Error::Settings(why));
    }
    let peer = match &settings.peer {
        Some(peer) => peer.clone(),
        None => contents.peer.parse().map_err(|why| {
            Error::Settings(format!("the record's peer, {}: {why}; say --to", contents.peer))
        })?,
    };
    let caller = Caller {
        migration: contents.migration,
        epoch: contents.epoch,
        peer,
        link: settings.link.clone(),
        needs: Features::default(),
    };
    let restored = Settings {
        // Only a new migration says this.
        setup: Setup { regions: vec![1], streams: 1, earlier: Vec::new(), description: Vec::new() },
        link_timeout: settings.link.timeout,
        resolve_limit: settings.resolve_timeout,
        give_up_after: None,
    };
    let (source, outputs) = Source::restored(
        restored,
        SourceRecord::Committed,
        contents.stun,
        contents.timeout,
        Holder::Gone,
        now(),
    );
    let (to_main, orders) = mpsc::channel();
    for output in outputs {
        if let Output::Order(order) = output {
            let _ = to_main.send(order);
        }
    }
    let conductor = Conductor::start(
        source,
        contents.migration.tag(),
        Arc::new(ProgressGauge::default()),
        move |order| drop(to_main.send(order)),
        Some(caller.dial(Arc::default())),
    )?;
    let outcome = ask(&conductor, &orders, &mut record, observer)?;
    // What was said last still arrives.
    drop(conductor);
    if matches!(outcome, Outcome::Arrived(_) | Outcome::Lost(_)) {
        record.remove();
    }
    Ok(outcome)
}

/// Carries out what the session orders, until it is known what became of the guest.
fn ask(
    session: &Conductor<Source>,
    orders: &mpsc::Receiver<Order>,
    record: &mut Record,
    observer: &mut dyn Observer,
) -> Result<Outcome, Error> {
    let migration = record.contents().migration;
    let mut interrupts = observer.interrupts();
    let (mut arrival, mut lost) = (None, None);
    loop {
        hear_interrupts(session, &mut interrupts, observer);
        match orders.recv_timeout(TICK) {
            Ok(Order::Record(says)) => {
                let written = write_down(session, record, says);
                if let (SourceRecord::Released, Some(arrival)) = (says, arrival) {
                    return written
                        .map(|()| Outcome::Arrived(arrival))
                        .map_err(|why| Error::Session(Failure::Record(why)));
                }
            }
            Ok(Order::HandedOver(how)) => arrival = Some(how),
            Ok(Order::Notice(notice)) => {
                if let Notice::Lost(why) = &notice {
                    lost = Some(why.to_string());
                }
                observer.progress(told(migration, &notice));
            }
            Ok(Order::Over) => return Ok(lost.map_or(Outcome::Left, Outcome::Lost)),
            // There is no guest here, and only a program that embedded the one that is gone would
            // know what notes mean.
            Ok(
                Order::Copy
                | Order::Ready(_)
                | Order::RunOn(_)
                | Order::Resume(_)
                | Order::Note(_)
                | Order::NotesHeard,
            )
            | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(Outcome::Left),
        }
    }
}
