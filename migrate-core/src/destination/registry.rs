//! Migrations that earlier programs left records of: whoever asks for one is told how it stands, by
//! the same session as if its program still ran.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use super::keeper::{Keeper, Kept};
use crate::Error;
use crate::clock::now;
use crate::conductor::Conductor;
use crate::link::endpoint::Caller;
use crate::operator::StateDirectory;
use crate::operator::record::{self, Record, Says};
use crate::proto::hello::{MigrationId, Welcome};
use crate::proto::message::{Message, Standing};
use crate::session::Output;
use crate::session::destination::{Destination, Order, Settings};
use crate::session::record::{DestinationRecord, Holder};

/// A record that says how a migration ended is kept for so long: a source that never heard it may
/// ask for weeks.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a caller has to take its answer.
const FAREWELL: Duration = Duration::from_millis(500);

/// The records of a state directory that nobody else holds.
pub(super) struct Registry {
    directory: StateDirectory,
    sessions: Mutex<HashMap<MigrationId, Keeper>>,
}

impl Registry {
    /// Takes up every record of a destination whose program is gone. One that cannot be read is left
    /// alone: nobody can say what it was about.
    pub(super) fn take_up(directory: &StateDirectory) -> Result<Self, Error> {
        let mut sessions = HashMap::new();
        for found in record::all(directory)? {
            let Ok(contents) = &found.contents else { continue };
            let (Says::Destination(says), false) = (contents.says, found.owned) else { continue };
            let Some(record) = Record::take_up(directory, &found.path)? else { continue };
            match is_old(&found.path) && is_final(says) {
                true => record.remove(),
                false => drop(sessions.insert(contents.migration, keep(record, says)?)),
            }
        }
        Ok(Self { directory: directory.clone(), sessions: Mutex::new(sessions) })
    }

    /// Answers a source that asks for a migration nobody here holds.
    pub(super) fn answer(&self, caller: Caller) {
        let id = caller.hello.migration;
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get(&id) {
            return session.let_in(caller);
        }
        drop(sessions);
        // Held by another program that cannot be reached here, or of no record at all.
        let path = self.directory.path().join(format!("{id}.destination"));
        let standing = match path.exists() {
            true => Standing::MayHaveRun,
            false => Standing::Unknown,
        };
        if let Ok((channel, _)) = caller.answer(&Welcome::Ok) {
            let _ = channel.write(&Message::Standing(standing).encode(id.tag()));
            channel.finish();
            // So that the answer is not lost with the connection.
            let start = std::time::Instant::now();
            while start.elapsed() < FAREWELL && channel.read_exact(&mut [0]).is_ok() {}
        }
    }
}

fn is_old(path: &std::path::Path) -> bool {
    let age = path
        .metadata()
        .and_then(|meta| meta.modified())
        .map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    age.is_ok_and(|age| age > KEPT)
}

fn is_final(says: DestinationRecord) -> bool {
    match says {
        DestinationRecord::GoneOn | DestinationRecord::Ended | DestinationRecord::Refused => true,
        DestinationRecord::Receiving
        | DestinationRecord::Prepared
        | DestinationRecord::Opening
        | DestinationRecord::Running => false,
    }
}

/// The session of a guest that died with its program.
fn keep(record: Record, says: DestinationRecord) -> Result<Keeper, Error> {
    let contents = record.contents().clone();
    let settings = Settings { resolve_limit: Duration::MAX, give_up_after: None };
    let (session, outputs) =
        Destination::restored(settings, says, contents.stun, contents.boot(), Holder::Gone, now());
    let (to_keeper, orders) = mpsc::channel();
    for output in outputs {
        if let Output::Order(order) = output {
            // The keeper is there in a moment.
            let _ = to_keeper.send(order);
        }
    }
    if says == DestinationRecord::Receiving {
        let _ = to_keeper.send(Order::Forget);
    }
    let tag = contents.migration.tag();
    let to = Mutex::new(to_keeper);
    let send = move |order| {
        // A keeper that is gone wants no orders.
        let _ = to.lock().unwrap_or_else(PoisonError::into_inner).send(order);
    };
    let conductor = Conductor::start(session, tag, Default::default(), send, None)?;
    let orders = Box::new(move |wait| orders.recv_timeout(wait).ok());
    let kept = Kept { conductor, orders, record, route: None, registered: None, endpoint: None };
    Keeper::start(kept).map(|(keeper, _)| keeper)
}
