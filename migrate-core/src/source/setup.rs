//! Setup: the session's connection, the destination's shadow, and meanwhile the first look at
//! memory; then the data connections, all at once.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::Progress;
use super::first_look::FirstLook;
use super::shell::{Attempt, Control, Links, Signal, ms};
use crate::Error;
use crate::clock::cpu_time;
use crate::error::{lost, spawn};
use crate::guest::GuestError;
use crate::link::channel::Channel;
use crate::link::connect;
use crate::proto::hello::Role;
use crate::proto::message::Activity;
use crate::session::source::Order;
use crate::wire::sender::{Sender, Wiring};
use crate::wire::shards::Shard;

/// A data connection without a job says that it lives so many times in a link timeout.
const ALIVE_DIVISOR: u32 = 4;

impl Attempt<'_> {
    /// Waits until the destination's shadow exists with all its memory; meanwhile starts tracking
    /// writes and looks at memory. Then opens the data connections.
    pub(super) fn setup(&mut self, control: &mut Control) -> Result<Links, Error> {
        let start = Instant::now();
        self.observer.progress(Progress::Setup);
        self.cpu_at_start = cpu_time();
        self.gauge.begin(Activity::Looking, self.report.memory_pages);
        self.tracker.start()?;
        let memory = self.guest.memory();
        let (checks, streams) = (self.settings.encoding.checks, u64::from(self.report.streams));
        let look = FirstLook::begin(&memory, self.present()?, checks, streams)?;
        loop {
            match self.next_order_while(control, "waiting for the shadow")? {
                Order::Copy => break,
                Order::Resume(failure) => return Err(self.put_back_later(failure)),
                _ => {}
            }
        }
        (self.looks, self.report.looked_at_pages) = look.end();
        let links = self.open_streams(control)?;
        self.report.setup_ms = ms(start.elapsed());
        self.gauge.begin(Activity::Copying, 0);
        Ok(links)
    }

    /// Opens all data connections at once: one after the other each costs a round trip or two.
    fn open_streams(&mut self, control: &Control) -> Result<Links, Error> {
        let timeout = control.conductor.look(crate::session::source::Source::timeout);
        let mut links = Links {
            jobs: Vec::new(),
            abandon: Arc::default(),
            data: Vec::new(),
            threads: Vec::new(),
            pacer: self.pacer.clone(),
        };
        let mut opening: Vec<JoinHandle<()>> = Vec::new();
        let (opened, connections) = mpsc::channel();
        for stream in 0..self.report.streams {
            let (caller, opened) = (self.caller(), opened.clone());
            opening.push(spawn("connect", move || {
                let hello = caller.hello(Role::Data { stream });
                // Nobody waits any more once one of them failed.
                let _ = opened.send((stream, connect(&caller.peer, hello, &caller.link)));
            })?);
        }
        drop(opened);
        let mut channels: Vec<(u32, Channel)> = Vec::new();
        let mut failed = None;
        for (stream, connection) in connections {
            match connection {
                Ok((channel, _)) => channels.push((stream, channel)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for thread in opening {
            thread.join().map_err(|_| GuestError::new("connect", "a thread panicked"))?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        channels.sort_by_key(|(stream, _)| *stream);
        for (stream, channel) in channels {
            self.report.congestion = channel.congestion().map_err(lost("asking the system"))?;
            let channel = Arc::new(channel);
            let sender = Sender::new(Wiring {
                streams: u64::from(self.report.streams),
                tag: self.id.tag(),
                channel: channel.clone(),
                memory: self.guest.memory(),
                looks: self.looks.clone(),
                pacer: self.pacer.clone(),
                counters: self.counters.clone(),
                encoding: self.settings.encoding,
            });
            let abandon = links.abandon.clone();
            let shard = Shard { index: u64::from(stream), sender, abandon };
            let (job, jobs) = mpsc::channel();
            let to_main = self.to_main.clone();
            links.threads.push(spawn("pages", move || {
                let done = |done| drop(to_main.send(Signal::Shard(done)));
                shard.run(&jobs, timeout / ALIVE_DIVISOR, done);
            })?);
            links.jobs.push(job);
            links.data.push(channel);
        }
        Ok(links)
    }
}
