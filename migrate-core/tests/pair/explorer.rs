//! Breadth first over all worlds that can be reached, each kept as a fingerprint with a link to the
//! one it came from: a failing history is a shortest one, and is found again by walking its actions.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

use crate::action::Action;
use crate::fingerprint::Fingerprint;
use crate::world::{Rules, Violation, World};

/// Fingerprints are hashes already.
#[derive(Default)]
pub struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

const IS_FAULT: u32 = 1 << 31;
const IS_WORD: u32 = 1 << 30;
const TARGET: u32 = IS_WORD - 1;
const NOBODY: u32 = u32::MAX;

/// What matters about a state after the walk.
#[derive(Clone, Copy)]
struct Mark {
    whole: bool,
    one_runs: bool,
    said_lost: bool,
    words_left: bool,
    both_up: bool,
    violated: bool,
}

/// What a walk found.
pub struct Walk {
    rules: Rules,
    parents: Vec<(u32, Action)>,
    marks: Vec<Mark>,
    /// Where each state's edges begin in the list of edges.
    first: Vec<u32>,
    edges: Vec<u32>,
    pub states: usize,
    pub transitions: usize,
    pub depth: usize,
    pub time: Duration,
    pub violations: BTreeMap<Violation, (usize, u32)>,
}

impl Walk {
    /// Walks all there is; `enough`: whether the first violation ends it.
    pub fn new(rules: Rules, enough: bool) -> Self {
        let began = Instant::now();
        let mut walk = Self {
            rules,
            parents: Vec::new(),
            marks: Vec::new(),
            first: Vec::new(),
            edges: Vec::new(),
            states: 0,
            transitions: 0,
            depth: 0,
            time: Duration::ZERO,
            violations: BTreeMap::new(),
        };
        let mut known: HashMap<u64, u32, BuildHasherDefault<Same>> = HashMap::default();
        let start = World::new(rules);
        known.insert(Fingerprint::of(&start), 0);
        walk.add(&start, NOBODY, Action::Time);
        let (mut level, mut next, mut actions) = (vec![start], Vec::new(), Vec::new());
        let mut at = 0;
        'all: while !level.is_empty() {
            for world in level.drain(..) {
                walk.first.push(walk.edges.len() as u32);
                world.actions(&mut actions);
                for action in &actions {
                    let mut then = world.clone();
                    then.act(*action);
                    let print = Fingerprint::of(&then);
                    let fresh = walk.parents.len() as u32;
                    let target = *known.entry(print).or_insert(fresh);
                    let fault = if action.is_fault() { IS_FAULT } else { 0 };
                    let word = if action.is_word() { IS_WORD } else { 0 };
                    walk.edges.push(target | fault | word);
                    if target == fresh {
                        walk.add(&then, at, *action);
                        if then.violation.is_some() && enough {
                            break 'all;
                        }
                        next.push(then);
                    }
                }
                at += 1;
            }
            walk.depth += 1;
            std::mem::swap(&mut level, &mut next);
        }
        walk.first.push(walk.edges.len() as u32);
        (walk.states, walk.transitions) = (walk.parents.len(), walk.edges.len());
        walk.time = began.elapsed();
        walk
    }

    fn add(&mut self, world: &World, parent: u32, action: Action) {
        let at = self.parents.len() as u32;
        self.parents.push((parent, action));
        self.marks.push(Mark {
            whole: world.is_whole(),
            one_runs: world.is_settled(),
            said_lost: world.is_said_lost(),
            words_left: world.left.words > 0,
            both_up: world.source.engine.is_some() && world.there_up,
            violated: world.violation.is_some(),
        });
        if let Some(violation) = world.violation {
            self.violations.entry(violation).or_insert((0, at)).0 += 1;
        }
    }

    /// Which states can reach one where `goal` holds, without faults and, maybe, without words.
    fn reach(&self, goal: impl Fn(&Mark) -> bool, words: bool) -> Vec<bool> {
        let mut reach: Vec<bool> = self.marks.iter().map(goal).collect();
        let closed = IS_FAULT | if words { 0 } else { IS_WORD };
        loop {
            let mut changed = false;
            for at in (0..self.states).rev() {
                let edges = &self.edges[self.first[at] as usize..self.first[at + 1] as usize];
                if !reach[at]
                    && edges
                        .iter()
                        .any(|edge| edge & closed == 0 && reach[(edge & TARGET) as usize])
                {
                    (reach[at], changed) = (true, true);
                }
            }
            if !changed {
                return reach;
            }
        }
    }

    /// States with a whole copy and a word left, from which no events lead to one running guest.
    pub fn stranded(&self) -> Vec<u32> {
        let reach = self.reach(|mark| mark.one_runs && !mark.violated, true);
        self.select(|at, mark| mark.whole && mark.words_left && !mark.violated && !reach[at])
    }

    /// The same without words, where both engines live: who is asked to speak.
    pub fn waits_for_a_word(&self) -> Vec<u32> {
        let reach = self.reach(|mark| mark.one_runs && !mark.violated, false);
        self.select(|at, mark| mark.whole && mark.both_up && !mark.violated && !reach[at])
    }

    /// States without a whole copy, from which none leads to a survivor that says so.
    pub fn silent(&self) -> Vec<u32> {
        let reach = self.reach(|mark| mark.said_lost || mark.one_runs, true);
        self.select(|at, mark| !mark.whole && !mark.violated && !reach[at])
    }

    fn select(&self, wanted: impl Fn(usize, &Mark) -> bool) -> Vec<u32> {
        let all = self.marks.iter().enumerate();
        all.filter(|(at, mark)| wanted(*at, mark)).map(|(at, _)| at as u32).collect()
    }

    /// The way to a state.
    pub fn history(&self, mut at: u32) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.parents[at as usize].0 != NOBODY {
            actions.push(self.parents[at as usize].1);
            at = self.parents[at as usize].0;
        }
        actions.reverse();
        actions
    }

    /// A state, come to again.
    pub fn world(&self, at: u32) -> World {
        replay(self.rules, &self.history(at))
    }

    /// The way to a state, drawn.
    pub fn chart(&self, at: u32) -> String {
        chart(self.rules, &self.history(at))
    }

    pub fn summary(&self) -> String {
        format!(
            "{} states, {} transitions, depth {}, {:.1} s",
            self.states,
            self.transitions,
            self.depth,
            self.time.as_secs_f64()
        )
    }
}

/// Walks a history again.
pub fn replay(rules: Rules, history: &[Action]) -> World {
    let mut world = World::new(rules);
    for action in history {
        world.act(*action);
    }
    world
}

/// Draws a history.
pub fn chart(rules: Rules, history: &[Action]) -> String {
    let mut world = World::new(rules);
    world.chart.0 = Some(Box::default());
    for action in history {
        world.act(*action);
    }
    let mut lines = world.chart.0.map(|chart| *chart).unwrap_or_default();
    let source = world.source.engine.map(|engine| format!("{:?}", engine.state()));
    let there = world.there.iter().map(|end| {
        let state = end.engine.as_ref().map(|engine| format!("{:?}", engine.state()));
        state.unwrap_or_else(|| "down".to_owned())
    });
    let there = there.collect::<Vec<_>>().join(", ");
    lines.insert(0, crate::chart::head());
    lines.push(format!("source {}, destination {there}", source.as_deref().unwrap_or("down")));
    lines.join("\n")
}
