//! Random histories, beyond the bounds of the walks and in finer time: first everything may happen,
//! then nothing fails any more but for one thing that may hang, and each end must come to a state in
//! which it may stay, in time. `VMIGRATE_PAIR=long` makes it ten times as many;
//! `VMIGRATE_PAIR_SEED` draws one.

use std::time::Duration;

use migrate_core::session::{
    IDLE_LIMIT, Moment, NOTICE_INTERVAL, STALL_LIMIT, destination, source,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::action::Action;
use crate::explorer::{chart, replay};
use crate::mutants::Mutant;
use crate::walks::needs_a_word;
use crate::world::{Clock, Crash, Guest, Left, RULES, Rules, TIMEOUT, World};

/// Most steps in which anything may happen.
const WILD_STEPS_MAX: usize = 200;
/// So much of a failing history is drawn at once; the rest is mostly waiting.
const CHART_LINES: usize = 80;
/// After so long everything has come to rest.
const CALM: Duration = Duration::from_secs(120);
/// What a quarter more or less, a message on its way and a tick that comes late amount to.
const SLACK: Duration = TIMEOUT;

/// What hangs from some moment on, without breaking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hang {
    Nothing,
    /// The destination's program stands still.
    Destination,
    /// The source's does.
    Source,
    /// Whatever is sent is swallowed.
    Network,
    /// Shadows are never built, guests never loaded.
    Loading,
}

impl Hang {
    fn holds(self, action: Action, world: &World) -> bool {
        use Action as A;
        match self {
            Self::Nothing => false,
            Self::Destination => matches!(
                action,
                A::DestinationHears(_)
                    | A::DestinationNotices(_)
                    | A::Accepts(_)
                    | A::DestinationOrder(_)
                    | A::DestinationWrites(_)
                    | A::DestinationAnswers(..)
                    | A::DestinationTicks(_)
                    | A::DestinationRestarts
                    | A::ReadsPages(_)
                    | A::Superseded(_)
            ),
            Self::Source => matches!(
                action,
                A::SourceHears(_)
                    | A::SourceNotices(_)
                    | A::Connects
                    | A::CannotConnect
                    | A::SourceOrder
                    | A::SourceWrites
                    | A::SourceRecorded
                    | A::SourceTicks
                    | A::SourceRestarts
                    | A::Stun
                    | A::Commit
                    | A::GoBack
            ),
            Self::Network => {
                matches!(action, A::SourceHears(_) | A::DestinationHears(_) | A::Accepts(_))
            }
            Self::Loading => world.is_loading(action),
        }
    }
}

/// How long each end has been where it is.
struct Watch {
    hang: Hang,
    states: [String; 2],
    since: [Moment; 2],
}

impl Watch {
    fn look(&mut self, world: &World) -> Result<(), String> {
        let source = world.source.engine.as_ref().map(|engine| engine.state());
        let engine = world.there.last().and_then(|end| end.engine.as_ref());
        let destination = engine.map(|engine| engine.state());
        for (at, state) in
            [format!("{source:?}"), format!("{destination:?}")].into_iter().enumerate()
        {
            if self.states[at] != state {
                (self.states[at], self.since[at]) = (state, world.now());
            }
        }
        let alone = world
            .there
            .last()
            .is_some_and(|end| end.engine.as_ref().is_some_and(|engine| !engine.is_connected()));
        if self.hang != Hang::Source {
            self.within(0, world, source.and_then(source_limit))?;
            let holds = matches!(source, Some(source::State::Committed));
            self.speaks(0, world, holds)?;
        }
        if self.hang != Hang::Destination {
            self.within(1, world, destination.and_then(destination_limit))?;
            let holds = matches!(destination, Some(destination::State::Prepared)) && alone;
            self.speaks(1, world, holds)?;
        }
        Ok(())
    }

    fn within(&self, end: usize, world: &World, limit: Option<Duration>) -> Result<(), String> {
        let age = world.now().since(self.since[end]);
        match limit {
            Some(limit) if age > limit + SLACK => {
                Err(format!("{} lasts {age:?}", self.states[end]))
            }
            _ => Ok(()),
        }
    }

    /// Who holds says so, after a while and then each minute.
    fn speaks(&self, end: usize, world: &World, holds: bool) -> Result<(), String> {
        let silent = world.now().since(world.told.0[end].max(self.since[end]));
        if holds && silent > NOTICE_INTERVAL + SLACK {
            return Err(format!("{} says nothing for {silent:?}", self.states[end]));
        }
        Ok(())
    }
}

/// How long a source may be somewhere while its own shell is prompt.
fn source_limit(state: &source::State) -> Option<Duration> {
    use source::State;
    match state {
        State::Setup | State::Copying | State::Stunned | State::Prepared => Some(STALL_LIMIT),
        State::Committing | State::Uncommitting { .. } | State::Releasing(_) => {
            Some(Duration::ZERO)
        }
        State::Committed | State::Released(_) | State::Resumed(_) | State::Left => None,
    }
}

fn destination_limit(state: &destination::State) -> Option<Duration> {
    use destination::State;
    match state {
        State::Greeting => Some(TIMEOUT),
        // It is the source whose patience ends.
        State::Setup | State::Loading => Some(STALL_LIMIT + TIMEOUT),
        State::Receiving { .. } => Some(IDLE_LIMIT),
        State::Preparing(_)
        | State::Reopening
        | State::TakingUp(_)
        | State::PuttingBack
        | State::Opening
        | State::Refusing(_) => Some(Duration::ZERO),
        State::Prepared
        | State::Running
        | State::Refused(_)
        | State::Ran(_)
        | State::Doubtful
        | State::Dropped => None,
    }
}

fn pick<T: Copy>(random: &mut SmallRng, list: &[T]) -> Option<T> {
    (!list.is_empty()).then(|| list[random.random_range(0..list.len())])
}

fn rules(random: &mut SmallRng) -> Rules {
    let crashes = [Crash::Dies, Crash::Outlives, Crash::Stops];
    let left = Left {
        cuts: random.random_range(0..6),
        crashes: random.random_range(0..4),
        words: random.random_range(0..5),
        agains: random.random_range(0..4),
        syncs: random.random_range(0..3),
        setbacks: random.random_range(0..2),
        hops: random.random_range(0..2),
        attempts: random.random_range(0..3),
        notes: random.random_range(0..3),
    };
    let crash = crashes[random.random_range(0..crashes.len())];
    let (power, gives_up) = (random.random_bool(0.3), random.random_bool(0.1));
    Rules { crash, clock: Clock::Quarters, power, gives_up, left, ..RULES }
}

/// One history, and what is wrong with it.
fn history(seed: u64, mutant: Option<Mutant>) -> (Rules, Vec<Action>, Result<(), String>) {
    let random = &mut SmallRng::seed_from_u64(seed);
    let rules = Rules { mutant, ..rules(random) };
    let mut world = World::new(rules);
    let mut taken = Vec::new();
    let mut actions = Vec::new();
    let (how_often, how_slow) =
        (10f64.powf(random.random_range(-3.0..-0.7)), random.random_range(0.05..0.5));
    for _ in 0..random.random_range(0..WILD_STEPS_MAX) {
        world.actions(&mut actions);
        actions.sort_by_key(|action| !is_calm(*action));
        let (calm, wild) = actions.split_at(actions.partition_point(|action| is_calm(*action)));
        let time = actions.contains(&Action::Time) && random.random_bool(how_slow);
        let wild = pick(random, wild).filter(|_| random.random_bool(how_often));
        let next = wild.or(time.then_some(Action::Time)).or_else(|| pick(random, calm));
        let Some(action) = next.or_else(|| pick(random, &actions)) else { break };
        world.act(action);
        taken.push(action);
        if let Some(violation) = world.violation {
            return (rules, taken, Err(format!("{violation:?}")));
        }
    }
    let hangs = [Hang::Destination, Hang::Source, Hang::Network, Hang::Loading];
    let hang = pick(random, &hangs).filter(|_| random.random_bool(0.5)).unwrap_or(Hang::Nothing);
    let verdict = calm_down(&mut world, random, hang, &mut taken);
    (rules, taken, verdict.map_err(|why| format!("{why}; {hang:?} hangs")))
}

/// What happens when nothing fails and nobody speaks; time passes when there is nothing else to do.
fn is_calm(action: Action) -> bool {
    use Action as A;
    let other = matches!(
        action,
        A::GoesOn(_)
            | A::Ends(_)
            | A::SourceGoesOn
            | A::Again
            | A::Time
            | A::SourceNotes
            | A::DestinationNotes(_)
    );
    !(action.is_fault() || action.is_word() || other)
}

fn calm_down(
    world: &mut World,
    random: &mut SmallRng,
    hang: Hang,
    taken: &mut Vec<Action>,
) -> Result<(), String> {
    let mut actions = Vec::new();
    let states = [String::new(), String::new()];
    let mut watch = Watch { hang, states, since: [world.now(); 2] };
    world.told.0 = [world.now(); 2];
    let end = world.now().after(CALM);
    while world.now() < end {
        world.actions(&mut actions);
        actions.retain(|action| is_calm(*action) && !hang.holds(*action, world));
        let action = pick(random, &actions).unwrap_or(Action::Time);
        world.act(action);
        taken.push(action);
        if let Some(violation) = world.violation {
            return Err(format!("{violation:?}"));
        }
        if action == Action::Time {
            watch.look(world)?;
        }
    }
    if hang != Hang::Nothing
        || world.running() == 1
        || world.gave_up
        || world.ended
        || world.rules.0.gives_up
    {
        return Ok(());
    }
    let both = world.source.engine.is_some() && world.there_up;
    if world.is_whole() && both && !needs_a_word(world) {
        return Err("a whole copy, and it does not run".to_owned());
    }
    if !world.is_whole() && !world.is_said_lost() {
        return Err("lost, and nobody says so".to_owned());
    }
    Ok(())
}

/// What came of histories: that they came to something is checked, too.
#[derive(Debug, Default)]
struct Tally {
    steps: usize,
    ran_there: usize,
    ran_on: usize,
    came_back: usize,
    words: usize,
}

impl Tally {
    fn add(&mut self, rules: Rules, taken: &[Action]) {
        let world = replay(rules, taken);
        self.steps += taken.len();
        self.ran_there += usize::from(world.there.iter().any(|end| end.ran));
        self.ran_on += usize::from(world.source.guest == Guest::Running);
        self.words += usize::from(world.left.words < rules.left.words);
        self.came_back += usize::from(world.serials.0 > 2);
    }
}

fn run(seeds: std::ops::Range<u64>) {
    let long = std::env::var("VMIGRATE_PAIR").is_ok_and(|form| form == "long");
    let factor = if long { 10 } else { 1 };
    let began = std::time::Instant::now();
    let mut tally = Tally::default();
    let seeds = seeds.start * factor..seeds.end * factor;
    for seed in seeds.clone() {
        let (rules, taken, verdict) = history(seed, None);
        if seed % 10 == 0 {
            tally.add(rules, &taken);
        }
        if let Err(why) = verdict {
            let drawn = chart(rules, &taken);
            let lines: Vec<_> = drawn.lines().take(CHART_LINES).collect();
            let last = drawn.lines().last().unwrap_or_default();
            panic!("seed {seed}: {why}\n{rules:?}\n{}\n{last}", lines.join("\n"));
        }
    }
    let time = began.elapsed().as_secs_f64();
    println!("seeds {seeds:?}, {time:.1} s; of each tenth: {tally:?}");
}

#[test]
fn fifty_thousand() {
    run(0..50_000);
}

#[test]
fn fifty_thousand_more() {
    run(50_000..100_000);
}

/// A machine that nobody wakes outstays its limits, a gate that opens before its record makes an
/// answer untrue: histories find both.
#[test]
fn histories_find_mistakes() {
    let find = |mutant, what: &str| {
        (0..20_000).find_map(|seed| match history(seed, Some(mutant)).2 {
            Err(why) if why.contains(what) => Some((seed, why)),
            _ => None,
        })
    };
    for (mutant, what) in [
        (Mutant::SourceIsNeverWoken, "Stunned) lasts"),
        (Mutant::DestinationIsNeverWoken, "Receiving"),
        (Mutant::OpeningLater, "Untrue"),
        (Mutant::LostIsRefused, "TwoRun"),
    ] {
        let found = find(mutant, what);
        println!("{mutant:?}: {found:?}");
        assert!(found.is_some(), "{mutant:?}");
    }
}

#[test]
fn one_that_is_named() {
    if let Some(seed) = std::env::var("VMIGRATE_PAIR_SEED").ok().and_then(|seed| seed.parse().ok())
    {
        let (rules, taken, verdict) = history(seed, None);
        println!("{verdict:?}\n{}", chart(rules, &taken));
    }
}
