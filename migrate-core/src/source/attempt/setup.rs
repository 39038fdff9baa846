//! Setup: the connections, the destination's shadow, and meanwhile the first look at memory.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{Attempt, Links, SETUP_TIMEOUT, Signal, ms};
use crate::Error;
use crate::clock::cpu_time;
use crate::error::{lost, spawn};
use crate::link::address::Endpoint;
use crate::link::connect;
use crate::link::pacer::Pacer;
use crate::memory::PAGE_BYTES;
use crate::proto::frame::{Header, Kind};
use crate::proto::hello::{Hello, Role};
use crate::source::Progress;
use crate::source::first_look::FirstLook;
use crate::source::sender::{Sender, Wiring};
use crate::source::shards::Shard;

/// The destination has a second for so many bytes of its shadow, beyond [`SETUP_TIMEOUT`].
const SETUP_BYTES_PER_S: u64 = 256 << 20;

impl Attempt<'_> {
    /// Connects, and waits until the destination's shadow exists with all its memory; meanwhile
    /// starts tracking writes and looks at memory.
    pub(super) fn setup(&mut self) -> Result<Links, Error> {
        let start = Instant::now();
        let settings = self.settings;
        settings.check()?;
        self.observer.progress(Progress::Setup);
        let migration = self.id;
        let hello = |role| Hello { migration, role, epoch: settings.epoch };
        let control = Arc::new(connect(&settings.peer, hello(Role::Control), &settings.link)?);
        let tag = self.id.tag();
        let (signal, signals) = mpsc::channel();
        let (reader, to_main) = (control.clone(), signal.clone());
        // After Running the connection belongs to the embedder's notes.
        spawn("control", move || {
            let doing = "listening to the destination";
            reader.listen(tag, Kind::Running, doing, |m| to_main.send(Signal::Control(m)).is_ok());
        })?;

        let description = self.guest.description();
        let pages = self.guest.memory().pages();
        let streams = self.report.streams;
        let header = Header::new(Kind::Setup, pages, u64::from(streams), description.len());
        control.send(tag, &header, &description).map_err(lost("asking for a shadow"))?;
        let patience = SETUP_TIMEOUT + Duration::from_secs(pages * PAGE_BYTES / SETUP_BYTES_PER_S);
        let mut links =
            Links { control, jobs: Vec::new(), signals, abandon: Arc::default(), data: Vec::new() };
        self.cpu_at_start = cpu_time();
        self.tracker.start()?;
        let (memory, checks) = (self.guest.memory(), settings.encoding.checks);
        let look = FirstLook::begin(&memory, self.present()?, checks, u64::from(streams))?;
        self.await_control(&links, Kind::SetupDone, patience, "waiting for the shadow")?;
        (self.looks, self.report.looked_at_pages) = look.end();

        // All streams go where the control connection went, whatever else the name stands for.
        let peer = Endpoint::from(links.control.peer().map_err(lost("asking the system"))?);
        let pacer = Arc::new(Pacer::new(settings.bandwidth));
        for stream in 0..streams {
            let channel = connect(&peer, hello(Role::Data { stream }), &settings.link)?;
            self.report.congestion = channel.congestion().map_err(lost("asking the system"))?;
            let channel = Arc::new(channel);
            let sender = Sender::new(Wiring {
                streams: u64::from(streams),
                tag,
                channel: channel.clone(),
                memory: memory.clone(),
                looks: self.looks.clone(),
                pacer: pacer.clone(),
                counters: self.counters.clone(),
                encoding: settings.encoding,
            });
            let abandon = links.abandon.clone();
            let shard = Shard { index: u64::from(stream), sender, abandon };
            let (job, jobs) = mpsc::channel();
            let to_main = signal.clone();
            spawn("pages", move || {
                shard.run(&jobs, |done| drop(to_main.send(Signal::Shard(done))));
            })?;
            links.jobs.push(job);
            links.data.push(channel);
        }
        self.report.setup_ms = ms(start.elapsed());
        Ok(links)
    }
}
