//! Each machine in each of its states, and what every event does there: driven out of the machines
//! themselves and kept as text, so that a change of the rules is seen as one.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use migrate_core::proto::StunNumber;
use migrate_core::proto::message::{Message, Progress, Setup, Standing};
use migrate_core::session::record::{Boot, DestinationRecord, Holder, SourceRecord};
use migrate_core::session::{
    ConnectionId, Failure, Heard, Machine, Moment, Output, Word, destination, source,
};

use crate::chart::{name, spoken};
use crate::world::{TIMEOUT, destination_settings, source_settings};

/// Compares with what is kept, or writes it anew.
pub fn compare(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    println!("{text}");
    if std::env::var("VMIGRATE_PAIR_WRITE").is_ok() {
        std::fs::write(&path, format!("{text}\n")).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).find(|(kept, now)| kept != now);
    let lines = (kept.lines().count(), text.lines().count());
    assert!(
        differs.is_none() && lines.0 == lines.1,
        "{file} is another ({lines:?} lines), first at {differs:#?}; VMIGRATE_PAIR_WRITE=1 writes it"
    );
}

/// Late enough for every age.
const START: Moment = Moment(Duration::from_secs(1000));
const STUN: StunNumber = StunNumber(1);
const OTHER: StunNumber = StunNumber(7);
const LINE: ConnectionId = ConnectionId(1);
const NEWER: ConnectionId = ConnectionId(2);

const WORDS: [Word; 7] = [
    Word::Cancel,
    Word::Interrupt,
    Word::SourceRuns { runs_nowhere_else: false },
    Word::SourceRuns { runs_nowhere_else: true },
    Word::DestinationRuns { source_is_gone: false },
    Word::DestinationRuns { source_is_gone: true },
    Word::GiveUp,
];

fn why() -> String {
    "why".to_owned()
}

fn lost() -> Heard {
    Heard::Lost(Failure::LinkLost("lost".to_owned()))
}

fn setup() -> Setup {
    source_settings(0, false).setup
}

fn messages() -> Vec<Message> {
    vec![
        Message::Setup(setup()),
        Message::SetupDone,
        Message::State { stun: STUN, state: vec![1] },
        Message::State { stun: OTHER, state: vec![1] },
        Message::Ready { stun: STUN, inspected: Duration::ZERO },
        Message::Ready { stun: OTHER, inspected: Duration::ZERO },
        Message::Run { stun: STUN },
        Message::Run { stun: OTHER },
        Message::Running,
        Message::Released,
        Message::Alive(Progress::default()),
        Message::Cancel { why: why() },
        Message::Fail { why: why() },
        Message::Note { number: 1, note: vec![1] },
        Message::NoteHeard { number: 1 },
        Message::Again { stun: STUN },
        Message::Refused { why: why() },
        Message::Late { stun: STUN },
        Message::Standing(Standing::Prepared { stun: STUN }),
        Message::Standing(Standing::Prepared { stun: OTHER }),
        Message::Standing(Standing::GoneOn),
        Message::Standing(Standing::Ended),
        Message::Standing(Standing::MayHaveRun),
        Message::Standing(Standing::Unknown),
    ]
}

/// Ticks after a quarter, just past a link timeout, and past every patience.
fn ticks() -> [(&'static str, Duration); 3] {
    [
        ("tick after a quarter of the link timeout", TIMEOUT / 4),
        ("tick after just over a link timeout", TIMEOUT + Duration::from_millis(1)),
        ("tick after 70 s", Duration::from_secs(70)),
    ]
}

type SourceEvents = Vec<(String, source::Event, Duration)>;

fn source_events() -> SourceEvents {
    use source::Event;
    let zero = Duration::ZERO;
    let mut events = vec![
        ("connected".to_owned(), Event::Connected(NEWER, TIMEOUT), zero),
        ("not connected".to_owned(), Event::NotConnected(why()), zero),
        ("stunned".to_owned(), Event::Stunned(vec![1]), zero),
        ("commit".to_owned(), Event::Commit, zero),
        ("go back".to_owned(), Event::GoBack, zero),
        ("recorded".to_owned(), Event::Recorded(Ok(())), zero),
        ("not recorded".to_owned(), Event::Recorded(Err(why())), zero),
        ("abandon".to_owned(), Event::Abandon(Failure::Local(why())), zero),
        ("a note".to_owned(), Event::Note(vec![1]), zero),
        ("lost".to_owned(), Event::Heard(LINE, lost()), zero),
    ];
    for message in messages() {
        events.push((format!("< {}", name(&message)), heard_at_source(message), zero));
    }
    for word in WORDS {
        events.push((spoken(word).to_owned(), Event::Word(0, word), zero));
        if matches!(word, Word::SourceRuns { .. }) {
            let name = format!("{}, two link timeouts later", spoken(word));
            events.push((name, Event::Word(0, word), TIMEOUT * 2));
        }
    }
    for (name, after) in ticks() {
        events.push((name.to_owned(), Event::Tick(Progress::default()), after));
    }
    events
}

fn heard_at_source(message: Message) -> source::Event {
    source::Event::Heard(LINE, Heard::Message(message))
}

/// Each state, and how one comes to it.
fn source_states() -> Vec<(&'static str, source::Source)> {
    use source::Event;
    let drive = |from: &source::Source, events: Vec<Event>| {
        let mut machine = from.clone();
        for event in events {
            machine.on(event, START);
        }
        machine
    };
    let say = heard_at_source;
    let ready = Message::Ready { stun: STUN, inspected: Duration::ZERO };
    let oath = Event::Word(0, Word::SourceRuns { runs_nowhere_else: true });
    let lost = || Event::Heard(LINE, lost());
    let called = drive(&source::Source::new(source_settings(0, false)), vec![Event::Start]);
    let setup = drive(&called, vec![Event::Connected(LINE, TIMEOUT)]);
    let copying = drive(&setup, vec![say(Message::SetupDone)]);
    let stunned = drive(&copying, vec![Event::Stunned(vec![1])]);
    let prepared = drive(&stunned, vec![say(ready)]);
    let committing = drive(&prepared, vec![Event::Commit]);
    let committed = drive(&committing, vec![Event::Recorded(Ok(()))]);
    let unresolved = drive(&committed, vec![lost()]);
    let mut sworn = unresolved.clone();
    for _ in 0..2 {
        sworn.on(oath.clone(), START.after(TIMEOUT * 2));
    }
    let refused = Message::Refused { why: why() };
    let restored = |record, holder| {
        source::Source::restored(source_settings(0, false), record, STUN, TIMEOUT, holder, START).0
    };
    vec![
        ("Setup, not connected yet", called),
        ("Setup", setup.clone()),
        ("Copying", copying.clone()),
        ("Stunned", stunned.clone()),
        ("Prepared", prepared),
        ("Committing", committing.clone()),
        ("Committing, lost", drive(&committing, vec![lost()])),
        ("Committing, refused", drive(&committing, vec![say(refused.clone())])),
        ("Uncommitting after a failed sync", drive(&committing, vec![Event::Recorded(Err(why()))])),
        ("Uncommitting after Refused", drive(&committed, vec![say(refused)])),
        ("Uncommitting by an oath", sworn),
        ("Committed", committed.clone()),
        (
            "Committed, asked back by a word",
            drive(&committed, vec![Event::Word(0, Word::SourceRuns { runs_nowhere_else: false })]),
        ),
        ("Committed, no connection", unresolved),
        (
            "Committed, a new engine without a guest",
            restored(SourceRecord::Committed, Holder::Gone),
        ),
        ("Releasing", drive(&committed, vec![say(Message::Running)])),
        ("Released", drive(&committed, vec![say(Message::Running), Event::Recorded(Ok(()))])),
        ("Resumed, to withdraw", drive(&stunned, vec![Event::Word(0, Word::Cancel)])),
        ("Resumed, to withdraw, no connection", drive(&stunned, vec![lost()])),
        ("Resumed, nothing to withdraw", drive(&copying, vec![lost()])),
        ("Resumed, a new engine without a guest", restored(SourceRecord::Open, Holder::Gone)),
        ("Left", drive(&committed, vec![Event::Word(0, Word::GiveUp)])),
    ]
}

type DestinationEvents = Vec<(String, destination::Event, Duration)>;

fn heard_there(message: Message) -> destination::Event {
    destination::Event::Heard(LINE, Heard::Message(message))
}

fn destination_events() -> DestinationEvents {
    use destination::Event;
    let zero = Duration::ZERO;
    let mut events = vec![
        ("asked on a newer connection".to_owned(), Event::Asked(NEWER, TIMEOUT), zero),
        ("built".to_owned(), Event::Built(Ok(())), zero),
        ("not built".to_owned(), Event::Built(Err(why())), zero),
        ("all pages".to_owned(), Event::PagesComplete, zero),
        ("loaded".to_owned(), Event::Loaded(Ok(zero)), zero),
        ("not loaded".to_owned(), Event::Loaded(Err(why())), zero),
        ("recorded".to_owned(), Event::Recorded(Ok(())), zero),
        ("recorded a link timeout later".to_owned(), Event::Recorded(Ok(())), TIMEOUT),
        (
            "recorded more than a link timeout later".to_owned(),
            Event::Recorded(Ok(())),
            TIMEOUT + Duration::from_nanos(1),
        ),
        ("not recorded".to_owned(), Event::Recorded(Err(why())), zero),
        ("opened".to_owned(), Event::Opened, zero),
        ("the guest goes on".to_owned(), Event::Left(Standing::GoneOn), zero),
        ("the guest ends".to_owned(), Event::Left(Standing::Ended), zero),
        ("abandon".to_owned(), Event::Abandon(Failure::Local(why())), zero),
        ("superseded".to_owned(), Event::Superseded, zero),
        ("a note".to_owned(), Event::Note(vec![1]), zero),
        ("lost".to_owned(), Event::Heard(LINE, lost()), zero),
    ];
    for message in messages() {
        events.push((format!("> {}", name(&message)), heard_there(message), zero));
    }
    for word in WORDS {
        events.push((spoken(word).to_owned(), Event::Word(0, word), zero));
    }
    for (name, after) in ticks() {
        events.push((name.to_owned(), Event::Tick(Progress::default()), after));
    }
    events
}

fn destination_states() -> Vec<(&'static str, destination::Destination)> {
    use destination::{Destination, Event};
    let drive = |from: &Destination, events: Vec<Event>| {
        let mut machine = from.clone();
        for event in events {
            machine.on(event, START);
        }
        machine
    };
    let say = heard_there;
    let recorded = || Event::Recorded(Ok(()));
    let state = Message::State { stun: STUN, state: vec![1] };
    let restored = |record, boot, holder| {
        Destination::restored(destination_settings(false), record, STUN, boot, holder, START).0
    };
    let fresh = Destination::new(destination_settings(false));
    let greeting = drive(&fresh, vec![Event::Called(LINE, TIMEOUT)]);
    let building = drive(&greeting, vec![say(Message::Setup(setup()))]);
    let receiving = drive(&building, vec![Event::Built(Ok(()))]);
    let stated = drive(&receiving, vec![say(state)]);
    let loading = drive(&stated, vec![Event::PagesComplete]);
    let preparing = drive(&loading, vec![Event::Loaded(Ok(Duration::ZERO))]);
    let prepared = drive(&preparing, vec![recorded()]);
    let taking_up = drive(&prepared, vec![say(Message::Run { stun: STUN })]);
    let mut putting_back = taking_up.clone();
    putting_back.on(recorded(), START.after(TIMEOUT * 2));
    let opening = drive(&taking_up, vec![recorded()]);
    let running = drive(&opening, vec![Event::Opened, recorded()]);
    let cancel = || say(Message::Cancel { why: why() });
    let alone = drive(&prepared, vec![Event::Heard(LINE, lost())]);
    let oath = Event::Word(0, Word::DestinationRuns { source_is_gone: true });
    vec![
        ("Greeting", greeting),
        ("Setup", building),
        ("Receiving", receiving.clone()),
        ("Receiving, state is here", stated),
        ("Loading", loading),
        ("Preparing", preparing),
        ("Prepared", prepared.clone()),
        ("Prepared, no connection", alone.clone()),
        ("Reopening", drive(&prepared, vec![say(Message::Again { stun: STUN })])),
        ("TakingUp by Run", taking_up),
        ("TakingUp by a word", drive(&alone, vec![oath])),
        ("PuttingBack", putting_back),
        ("Opening", opening),
        ("Running", running.clone()),
        ("Running, settled", drive(&running, vec![say(Message::Released)])),
        ("Refusing", drive(&prepared, vec![cancel()])),
        ("Refused", drive(&prepared, vec![cancel(), recorded()])),
        ("Ran", drive(&running, vec![Event::Left(Standing::Ended)])),
        ("Dropped", drive(&receiving, vec![cancel()])),
        (
            "a new engine: prepared, no guest, this boot",
            restored(DestinationRecord::Prepared, Boot::This, Holder::Gone),
        ),
        (
            "a new engine: prepared, no guest, another boot",
            restored(DestinationRecord::Prepared, Boot::Earlier, Holder::Gone),
        ),
        (
            "a new engine: opening, a guest that never ran",
            restored(DestinationRecord::Opening, Boot::This, Holder::Stopped),
        ),
        (
            "a new engine: opening, a guest that ran",
            restored(DestinationRecord::Opening, Boot::This, Holder::Started),
        ),
        (
            "a new engine: running, no guest",
            restored(DestinationRecord::Running, Boot::This, Holder::Gone),
        ),
    ]
}

/// An output in few words.
fn brief<O: std::fmt::Debug>(output: &Output<O>) -> String {
    match output {
        Output::Connect(purpose) => format!("connect ({purpose:?})"),
        Output::Send(_, message) => format!("say {}", name(message)),
        Output::Close(_) => "close".to_owned(),
        Output::Order(order) => format!("{order:?}"),
        Output::Answer(_, reply) => {
            let text: String = reply.text.chars().take(32).collect();
            format!("{}: {text}...", if reply.taken { "taken" } else { "not taken" })
        }
    }
}

/// One machine's part of a table: what is done, and by which events.
fn part<M>(
    title: &str,
    machine: &M,
    state: impl Fn(&M) -> String,
    events: Vec<(String, M::Event, Duration)>,
) -> String
where
    M: Machine + Clone + PartialEq,
    M::Order: std::fmt::Debug,
{
    let wake = machine.wake().map(|wake| wake.since(START));
    let wake = wake.map_or("never".to_owned(), |wake| format!("after {wake:?}"));
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (name, event, after) in events {
        let mut then = machine.clone();
        let out = then.on(event, START.after(after));
        let mut said: Vec<_> = out.iter().map(brief).collect();
        if state(&then) != state(machine) {
            said.insert(0, format!("-> {}", state(&then)));
        }
        let said = match said.is_empty() {
            false => without_kinds(&said.join("; ")),
            true if then == *machine => "nothing".to_owned(),
            true => "remembers it".to_owned(),
        };
        match rows.iter_mut().find(|(known, _)| *known == said) {
            Some((_, names)) => names.push(name),
            None => rows.push((said, vec![name])),
        }
    }
    let mut text = format!("\n{title} [{}], wants to wake {wake}\n", state(machine));
    for (said, names) in rows {
        writeln!(text, "    {said}").unwrap();
        let mut line = String::new();
        for name in names {
            if !line.is_empty() && line.len() + name.len() > 88 {
                writeln!(text, "          {line}").unwrap();
                line.clear();
            }
            line += &format!("{name}, ");
        }
        writeln!(text, "          {}", line.trim_end_matches(", ")).unwrap();
    }
    text
}

/// Breaches of one kind are one row.
fn without_kinds(said: &str) -> String {
    let mut rest = said;
    let mut text = String::new();
    while let Some((before, after)) = rest.split_once("Unexpected { kind: ") {
        let (_, after) = after.split_once(", why: ").unwrap();
        let (why, after) = after.split_once(" }").unwrap();
        text += &format!("{before}{why}");
        rest = after;
    }
    text + rest
}

fn header(end: &str) -> String {
    format!(
        "The {end}'s machine: every state, what is done there, and by which events. Written by\n\
         migrate-core/tests/pair/tables.rs; VMIGRATE_PAIR_WRITE=1 writes it anew. The link timeout is\n\
         {TIMEOUT:?}; `<` is said by the destination, `>` by the source, 1 is the stun under way.\n"
    )
}

#[test]
fn of_the_source() {
    let mut text = header("source");
    for (title, machine) in source_states() {
        let state = |machine: &source::Source| format!("{:?}", machine.state());
        text += &part(title, &machine, state, source_events());
    }
    compare("docs/session-source.txt", text.trim_end());
}

#[test]
fn of_the_destination() {
    let mut text = header("destination");
    for (title, machine) in destination_states() {
        let state = |machine: &destination::Destination| format!("{:?}", machine.state());
        text += &part(title, &machine, state, destination_events());
    }
    compare("docs/session-destination.txt", text.trim_end());
}
