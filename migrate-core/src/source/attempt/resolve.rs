//! The one ambiguous moment: Run was said and no answer came. The guest stays stopped here until
//! the destination, or an operator, says where it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Attempt;
use crate::Error;
use crate::error::lost;
use crate::link::channel::Channel;
use crate::link::connect;
use crate::proto::ProtoError;
use crate::proto::frame::{Header, Kind};
use crate::proto::hello::{Hello, Role};
use crate::proto::state::SourceEvent;
use crate::source::Progress;
use crate::source::handover::{Record, Resolution};

/// Time between two tries to reach a destination that did not answer Run.
const RESOLVE_INTERVAL: Duration = Duration::from_millis(500);

impl Attempt<'_> {
    /// Asks the destination again and again, and watches for an operator's decision.
    pub(super) fn resolve(&mut self, record: &Record) -> Result<Option<Arc<Channel>>, Error> {
        let deadline = Instant::now() + self.settings.resolve_timeout;
        self.observer.progress(Progress::Unresolved { migration: self.id });
        while Instant::now() < deadline {
            let answer = match record.decision() {
                Some(Resolution::SourceRuns) => {
                    self.enter(SourceEvent::SourceRuns);
                    self.release()?;
                    return Err(Error::Cancelled);
                }
                Some(Resolution::DestinationRuns) => Ok(None),
                None => self.ask_again().map(Some),
            };
            if let Ok(control) = answer {
                self.enter(SourceEvent::Running);
                return Ok(control.map(Arc::new));
            }
            std::thread::sleep(RESOLVE_INTERVAL);
        }
        Err(Error::Unresolved { id: self.id.to_string() })
    }

    /// Says Run once more on a new connection: a prepared destination runs now, a running one
    /// says so. Either way the guest runs there and not here.
    fn ask_again(&self) -> Result<Channel, Error> {
        let (tag, epoch) = (self.id.tag(), self.settings.epoch);
        let hello = Hello { migration: self.id, role: Role::Resolve, epoch };
        let channel = connect(&self.settings.peer, hello, &self.settings.link)?;
        let doing = "resolving the handover";
        channel.send(tag, &Header::new(Kind::Run, epoch, 0, 0), &[]).map_err(lost(doing))?;
        loop {
            let header = channel.read_header(tag, doing)?;
            channel.read_payload(&header, doing)?;
            match header.kind {
                Kind::Running if header.a == epoch => {
                    let _ = channel.send(tag, &Header::new(Kind::Released, epoch, 0, 0), &[]);
                    return Ok(channel);
                }
                Kind::Alive => {}
                kind => return Err(ProtoError::Unexpected { kind, why: "resolving" }.into()),
            }
        }
    }
}
