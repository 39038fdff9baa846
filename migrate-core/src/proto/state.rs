//! The handover as data: who may do what in which state.
//!
//! ```text
//! source       Setup -> Copying -> Stunned -> Prepared -> Committed -> Released
//!                 \________\_________\__________\-> Resumed     \-> Unresolved -> Released | Resumed
//! destination  Setup -> Receiving -> Prepared -> Running
//!                 \________\___________\-> Discarded
//! ```
//!
//! A stun that took too long goes back: Stunned or Prepared to Copying, Prepared to Receiving.
//!
//! At every instant at most one side runs the guest. Before `Committed` any failure resumes the
//! source; from `Committed` on it never resumes by itself. The destination runs only on Run with
//! the epoch it was prepared for, and from `Prepared` on it does not forget the guest because a
//! connection was lost.

/// Where the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The destination builds its shadow.
    Setup,
    /// The guest runs here while pages are sent.
    Copying,
    /// The guest is paused; the rest is sent.
    Stunned,
    /// The destination has everything and said so.
    Prepared,
    /// The decision is on disk: the guest will not run here again by itself.
    Committed,
    /// The destination runs the guest.
    Released,
    /// The attempt failed; the guest runs here.
    Resumed,
    /// Committed, and the destination does not answer: stopped here.
    Unresolved,
}

/// What happens to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// SetupDone arrived.
    ShadowReady,
    /// The policy decided to stun and the guest is paused.
    Paused,
    /// Ready arrived.
    Ready,
    /// The stun takes longer than it may: the guest runs on here and copying goes on.
    Overran,
    /// The record is on disk.
    Recorded,
    /// Running arrived, or an operator says that it runs there.
    Running,
    /// A link, a guest, a policy or the user ended the attempt.
    Failed,
    /// An operator vouches that the destination will never run the guest.
    SourceRuns,
}

/// Where the destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Building the shadow.
    Setup,
    /// Pages arrive.
    Receiving,
    /// Everything is here and was confirmed.
    Prepared,
    /// The guest runs here.
    Running,
    /// The shadow was dropped.
    Discarded,
}

/// What happens to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationEvent {
    /// The shadow exists.
    ShadowReady,
    /// All pages and the state arrived, were loaded and inspected.
    Complete,
    /// Again arrived: the stun took too long, more pages and another state will come.
    Again,
    /// Run arrived with the right epoch.
    Run,
    /// Run arrived with another epoch.
    RunOtherEpoch,
    /// Cancel arrived, or an operator discards the shadow.
    Cancel,
    /// The control connection was lost.
    Lost,
}

impl Source {
    /// All states, for tables.
    pub const ALL: [Self; 8] = [
        Self::Setup,
        Self::Copying,
        Self::Stunned,
        Self::Prepared,
        Self::Committed,
        Self::Released,
        Self::Resumed,
        Self::Unresolved,
    ];

    /// The state after `event`; `None` where it cannot happen.
    pub fn next(self, event: SourceEvent) -> Option<Self> {
        use SourceEvent as E;
        Some(match (self, event) {
            (Self::Setup, E::ShadowReady) => Self::Copying,
            (Self::Copying, E::Paused) => Self::Stunned,
            (Self::Stunned, E::Ready) => Self::Prepared,
            (Self::Stunned | Self::Prepared, E::Overran) => Self::Copying,
            (Self::Prepared, E::Recorded) => Self::Committed,
            (Self::Committed | Self::Unresolved, E::Running) => Self::Released,
            (Self::Setup | Self::Copying | Self::Stunned | Self::Prepared, E::Failed) => {
                Self::Resumed
            }
            (Self::Committed | Self::Unresolved, E::Failed) => Self::Unresolved,
            (Self::Unresolved, E::SourceRuns) => Self::Resumed,
            _ => return None,
        })
    }
}

impl SourceEvent {
    /// All events, for tables.
    pub const ALL: [Self; 8] = [
        Self::ShadowReady,
        Self::Paused,
        Self::Ready,
        Self::Overran,
        Self::Recorded,
        Self::Running,
        Self::Failed,
        Self::SourceRuns,
    ];
}

impl Destination {
    /// All states, for tables.
    pub const ALL: [Self; 5] =
        [Self::Setup, Self::Receiving, Self::Prepared, Self::Running, Self::Discarded];

    /// The state after `event`; `None` where it cannot happen (the peer breaks the protocol).
    pub fn next(self, event: DestinationEvent) -> Option<Self> {
        use DestinationEvent as E;
        Some(match (self, event) {
            (Self::Setup, E::ShadowReady) => Self::Receiving,
            (Self::Receiving, E::Complete) => Self::Prepared,
            (Self::Prepared, E::Again) => Self::Receiving,
            // Run may be repeated by a source that did not hear the answer.
            (Self::Prepared | Self::Running, E::Run) => Self::Running,
            (Self::Prepared, E::RunOtherEpoch | E::Lost) => Self::Prepared,
            (Self::Running, E::RunOtherEpoch | E::Lost) => Self::Running,
            (Self::Setup | Self::Receiving, E::Lost | E::Cancel) => Self::Discarded,
            (Self::Prepared, E::Cancel) => Self::Discarded,
            _ => return None,
        })
    }
}

impl DestinationEvent {
    /// All events, for tables.
    pub const ALL: [Self; 7] = [
        Self::ShadowReady,
        Self::Complete,
        Self::Again,
        Self::Run,
        Self::RunOtherEpoch,
        Self::Cancel,
        Self::Lost,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    fn table<S: Debug + Copy, E: Debug + Copy>(
        states: &[S],
        events: &[E],
        next: impl Fn(S, E) -> Option<S>,
    ) -> String {
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = row(std::iter::once(String::new())
            .chain(events.iter().map(|e| format!("{e:?}")))
            .collect());
        text += &row(vec!["---".to_owned(); events.len() + 1]);
        for state in states {
            let cell = |e: &E| next(*state, *e).map_or("-".to_owned(), |s| format!("{s:?}"));
            let cells = events.iter().map(cell);
            text += &row(std::iter::once(format!("{state:?}")).chain(cells).collect());
        }
        text
    }

    /// The whole state x event table is in the protocol document; a change to either must be one.
    #[test]
    fn tables_are_the_documented_ones() {
        let doc = include_str!("../../../docs/protocol.md");
        let source = table(&Source::ALL, &SourceEvent::ALL, Source::next);
        let destination = table(&Destination::ALL, &DestinationEvent::ALL, Destination::next);
        assert!(doc.contains(&source), "docs/protocol.md should show\n{source}");
        assert!(doc.contains(&destination), "docs/protocol.md should show\n{destination}");
    }

    /// Over every joint history of the two machines, at most one side runs the guest.
    #[test]
    fn never_do_both_sides_run() {
        let mut seen = vec![];
        // Joint state: source, destination, and which messages the source has sent.
        let mut todo = vec![(Source::Setup, Destination::Setup)];
        while let Some((source, destination)) = todo.pop() {
            if seen.contains(&(source, destination)) {
                continue;
            }
            seen.push((source, destination));
            let source_runs = matches!(source, Source::Setup | Source::Copying | Source::Resumed);
            assert!(!(source_runs && destination == Destination::Running));
            for event in SourceEvent::ALL {
                let possible = match event {
                    SourceEvent::ShadowReady => destination == Destination::Receiving,
                    SourceEvent::Ready => destination == Destination::Prepared,
                    SourceEvent::Running => destination == Destination::Running,
                    SourceEvent::SourceRuns => destination != Destination::Running,
                    _ => true,
                };
                let next = source.next(event).filter(|_| possible);
                // An operator who lets the source run has vouched for the destination's end.
                let after = match event {
                    SourceEvent::SourceRuns => Destination::Discarded,
                    _ => destination,
                };
                todo.extend(next.map(|s| (s, after)));
            }
            for event in DestinationEvent::ALL {
                let possible = match event {
                    DestinationEvent::Run => {
                        matches!(source, Source::Committed | Source::Unresolved)
                    }
                    DestinationEvent::Complete => source == Source::Stunned,
                    DestinationEvent::Again => source == Source::Copying,
                    DestinationEvent::Cancel => source == Source::Resumed,
                    _ => true,
                };
                todo.extend(destination.next(event).filter(|_| possible).map(|d| (source, d)));
            }
        }
        assert!(seen.contains(&(Source::Released, Destination::Running)));
    }
}
